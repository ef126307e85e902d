"""Which cells there are, and how large grids are cut into pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid.axes import parse_epochs
from lora_atelier.training.grid.plan import PAGE_PIXELS, PAGE_SIDE, Axes, check_size, columns_of, describe_size, spread
from lora_atelier.training.runs.record import SavedLoRA
from lora_atelier.training.runs.run import Epochs


def run(name: str, *numbers: int) -> Epochs:
    return Epochs(name, "SD15", tuple(SavedLoRA(Path(f"{name}{n}.safetensors"), n, n * 10) for n in numbers))


def labels(runs, text: str) -> list[str]:
    return [column.label for column in columns_of(runs, parse_epochs(text))]


def test_columns_are_the_chosen_epochs():
    assert labels([run("ink", 1, 2, 3)], "1, 3") == ["epoch 1", "epoch 3"]
    assert labels([run("ink", 1, 2), run("wash", 5)], "all") == ["ink epoch 1", "ink epoch 2", "wash epoch 5"]
    alone = Epochs("ink", "", (SavedLoRA(Path("ink.safetensors"), 0, 0, "last"),))
    assert labels([alone], "all") == ["ink"]
    assert Axes(("a",), columns_of([run("ink", 1), run("wash", 1)], parse_epochs("all")), (1.0,), (0,)).title == "ink, wash"


def test_nothing_to_show_is_told():
    with pytest.raises(AtelierError, match="none of '3' was saved; there are 2, 4"):
        columns_of([run("ink", 2, 4)], parse_epochs("3"))
    with pytest.raises(AtelierError, match="train first"):
        columns_of([run("ink")], parse_epochs("all"))
    with pytest.raises(AtelierError, match="train first"):
        columns_of([], parse_epochs("all"))


def test_pages_are_prompts_and_seeds_and_the_control_counts_once_on_each():
    axes = Axes(("a", "b"), columns_of([run("ink", 1, 2, 3)], parse_epochs("all")), (0.5, 1.0), (1, 2, 3))
    assert [(page.prompt, page.seed) for page in axes.pages] == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3)]
    assert axes.cells == 6 * (1 + 3 * 2)
    assert describe_size(axes, 64, 96) == "42 cells of 64 x 96 px on 6 pages"


def test_a_grid_that_would_never_end_is_refused_before_it_begins():
    check_size(1000, 1024, 1024)
    with pytest.raises(AtelierError, match="1200 cells"):
        check_size(1200, 64, 64)
    with pytest.raises(AtelierError, match="megapixels"):
        check_size(3, 16384, 16384)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(16, 6000), st.integers(16, 6000))
def test_large_pages_are_cut_so_that_every_cell_is_on_one_and_each_can_be_opened(columns, rows, width, height):
    parts = spread(columns, rows, width, height)
    places = [(x, y) for xs, ys in parts for x in xs for y in ys]
    assert sorted(places) == [(x, y) for x in range(columns) for y in range(rows)]
    for xs, ys in parts:
        cells = (1 + len(xs)) * width, len(ys) * height
        smallest = len(xs) == 1 and len(ys) == 1
        assert smallest or (max(cells) <= PAGE_SIDE and cells[0] * cells[1] <= PAGE_PIXELS)
    if (1 + columns) * width <= PAGE_SIDE and rows * height <= PAGE_SIDE and (1 + columns) * width * rows * height <= PAGE_PIXELS:
        assert len(parts) == 1
