"""The axes as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid.plan import Epochs, check_size, choose_epochs, parse_numbers, prompt_lines
from lora_atelier.training.run import SavedLoRA


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.6, 0.8, 1.0", [0.6, 0.8, 1.0]),
        ("0-1(+0.25)", [0, 0.25, 0.5, 0.75, 1]),
        ("0-1[5]", [0, 0.25, 0.5, 0.75, 1]),
        ("1-20(+2)", [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]),
        ("-1, 0-0.5(+0.5), 0.5", [-1, 0, 0.5]),
        ("1[1]", None),
        ("0.1-0.3(+0.1)", [0.1, 0.2, 0.3]),
        ("1", [1]),
        ("2-2[1]", [2]),
    ],
)
def test_ranges_mean_what_they_mean_in_the_known_plot(text, expected):
    if expected is None:
        with pytest.raises(AtelierError, match="strengths"):
            parse_numbers(text, "strengths", 0.25)
    else:
        assert parse_numbers(text, "strengths", 0.25) == expected


@pytest.mark.parametrize(
    "text", ["", " , ", "one", "1-0(+0.1)", "0-1(+0)", "0-1[0]", "0-1[9999]", "0-9999(+0.001)", "1;2", "__import__"]
)
def test_nonsense_is_refused_by_name(text):
    with pytest.raises(AtelierError, match="strengths"):
        parse_numbers(text, "strengths", 0.25)


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=1, max_size=20, unique=True))
def test_a_typed_list_comes_back(values):
    assert parse_numbers(", ".join(f"{v:f}" for v in values), "strengths", 1) == values


def epochs(*numbers: int) -> Epochs:
    return Epochs("ink", "SD15", tuple(SavedLoRA(Path(f"{n}.safetensors"), n, n * 10) for n in numbers))


def test_epochs_are_chosen_and_the_last_is_never_missed():
    saved = epochs(2, 4, 6, 8, 9)
    assert [f.epoch for f in choose_epochs(saved, "all")] == [2, 4, 6, 8, 9]
    assert [f.epoch for f in choose_epochs(saved, "")] == [2, 4, 6, 8, 9]
    assert [f.epoch for f in choose_epochs(saved, "every 2")] == [4, 8, 9]
    assert [f.epoch for f in choose_epochs(saved, "1-6")] == [2, 4, 6]
    assert [f.epoch for f in choose_epochs(saved, "9, 2")] == [2, 9]
    with pytest.raises(AtelierError, match="2, 4, 6, 8, 9"):
        choose_epochs(saved, "3")
    with pytest.raises(AtelierError, match="train first"):
        choose_epochs(epochs(), "all")


def test_prompts_are_lines():
    assert prompt_lines("a fox\n\n  an owl \n") == ["a fox", "an owl"]
    with pytest.raises(AtelierError, match="prompts"):
        prompt_lines(" \n ")


def test_a_grid_that_would_never_fit_is_refused_before_it_begins():
    check_size(30, 1024, 1024, 1)
    with pytest.raises(AtelierError, match="1200 cells"):
        check_size(1200, 64, 64, 1)
    with pytest.raises(AtelierError, match="megapixels"):
        check_size(300, 1024, 1024, 1)
