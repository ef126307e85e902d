"""Which cells there are, and how large grids are cut into pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid.axes import parse_epochs
from lora_atelier.training.grid.files import as_runs
from lora_atelier.training.grid.plan import (
    PAGE_PIXELS,
    PAGE_SIDE,
    Axes,
    Column,
    check_size,
    columns_of,
    describe_size,
    remarks,
    spread,
)  # fmt: skip
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


def test_the_trainings_of_a_sweep_are_told_apart_by_what_varies():
    def trained(name: str, recipe: str, varied: str, *numbers: int) -> Epochs:
        return replace(run(name, *numbers), recipe=recipe, varied=varied)

    four, eight = trained("ink rank 4", "ink", "rank=4", 1, 2), trained("ink rank 8", "ink", "rank=8", 1, 2)
    axes = Axes(("a",), columns_of([four, eight], parse_epochs("last")), (1.0,), (0,))
    assert [column.label for column in axes.columns] == ["rank 4 epoch 2", "rank 8 epoch 2"]
    assert (axes.title, axes.across) == ("ink", "saved LoRAs by rank")
    ends = [replace(one, files=(*one.files, SavedLoRA(Path(f"{one.name}.safetensors"), 3, 30, "last"))) for one in (four, eight)]
    assert labels(ends, "last") == ["rank 4", "rank 8"], "the last of each, of whatever epoch"
    other = trained("wash", "wash", "", 3)
    mixed = Axes(("a",), columns_of([four, other], parse_epochs("last")), (1.0,), (0,))
    assert [column.label for column in mixed.columns] == ["ink rank 4 epoch 2", "wash epoch 3"]
    assert (mixed.title, mixed.across) == ("ink rank 4, wash", "saved LoRAs")
    alone = Axes(("a",), columns_of([four], parse_epochs("all")), (1.0,), (0,))
    assert [column.label for column in alone.columns] == ["epoch 1", "epoch 2"]


def test_every_column_has_a_name_of_its_own():
    def files(*paths):
        return as_runs([str(path) for path in paths], Path, lambda _path: {})

    same = [f"{folder}/checkpoint-{n}/adapter_model.safetensors" for folder in ("a", "b") for n in (1, 10, 2)]
    assert labels(files(*same), "all") == [f"{folder} checkpoint-{n}" for folder in ("a", "b") for n in (1, 2, 10)]
    assert labels(files("a/ink.safetensors", "b/ink.safetensors"), "all") == ["ink (a)", "ink (b)"]
    wired = run("ink", 1, 2)
    assert labels([wired, wired], "all") == ["ink epoch 1", "ink epoch 2"]
    twins = Epochs("ink", "", (SavedLoRA(Path("a/x.safetensors"), 3, 1), SavedLoRA(Path("b/x.safetensors"), 3, 2)))
    assert labels([twins], "all") == ["epoch 3 (x)", "epoch 3 (x) #2"]


def test_what_was_asked_for_and_is_not_there_is_told():
    assert remarks([run("ink", 2, 4)], parse_epochs("2, 3, 4-9"), (1.0,)) == ["which_epochs: 3 was not saved; there are 2, 4."]
    assert remarks([run("ink", 2), run("wash", 3)], parse_epochs("2, 3"), (1.0,)) == []
    assert remarks([run("ink", 2, 4)], parse_epochs("all"), (0.5, 1.0)) == []
    wired = run("ink", 1)
    assert remarks([wired, wired], parse_epochs("all"), (1.0,)) == ["ink1.safetensors is named twice and shown once."]
    (zero,) = remarks([wired], parse_epochs("all"), (0.0, 1.0))
    assert "at 0 a LoRA changes nothing" in zero
    series = as_runs(["ink.safetensors", "ink-000001.safetensors"], Path, lambda _path: {})
    assert "does not say after which epoch" in remarks(series, parse_epochs("all"), (1.0,))[0]


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


@pytest.mark.parametrize(
    ("files", "strengths", "text", "most", "expected"),
    [
        (6, (0.2, 0.4, 0.6, 0.8, 1.0), None, 8, (8, 3)), (6, (0.0, 0.25, 0.5, 0.75, 1.0), None, 8, (8, 2)),
        (6, (0.0, 0.25, 0.5, 0.75, 1.0), 0.5, 8, (8, 3)), (8, (1.0,), None, 8, (8, 8)), (2, (1.0, 0.5), None, 8, (4, 2)),
        (3, (1.0, 0.5), None, 2, (2, 1)), (3, (0.0,), None, 8, (1, 1)), (0, (1.0,), None, 8, (1, 1)),
        (9, (1.0, 2.0), None, 1, (1, 1)),
    ],
)  # fmt: skip
def test_how_many_cells_and_files_a_batch_holds(files, strengths, text, most, expected):
    """At strength 0 nothing is drawn, unless the text encoder has a strength of its own."""
    columns = tuple(Column(SavedLoRA(Path(f"{i}.safetensors"), i, i), "ink", str(i)) for i in range(files))
    assert Axes(("a fox",), columns, strengths, (1,), text).together(most) == expected
