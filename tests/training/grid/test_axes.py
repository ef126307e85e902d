"""The axes as they are typed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid.axes import (
    MAX_VALUES,
    parse_epochs,
    parse_numbers,
    parse_seeds,
    parse_strengths,
    prompt_lines,
)


@dataclass(frozen=True)
class Saved:
    epoch: int


def chosen(text: str, *numbers: int) -> list[int]:
    return [saved.epoch for saved in parse_epochs(text).of([Saved(n) for n in numbers])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.6, 0.8, 1.0", [0.6, 0.8, 1.0]),
        ("0-1(+0.25)", [0, 0.25, 0.5, 0.75, 1]),
        ("0-1 (+0.25)", [0, 0.25, 0.5, 0.75, 1]),
        ("0-1", [0, 0.25, 0.5, 0.75, 1]),
        ("1-0(-0.5)", [1, 0.5, 0]),
        ("0-1[5]", [0, 0.25, 0.5, 0.75, 1]),
        ("1-0[3]", [1, 0.5, 0]),
        ("1-20(+2)", [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]),
        ("-1, 0-0.5(+0.5), 0.5", [-1, 0, 0.5]),
        ("-1--0.5(+0.5)", [-1, -0.5]),
        ("0.1-0.3(+0.1)", [0.1, 0.2, 0.3]),
        ("1", [1]),
        ("2-2[1]", [2]),
        ("0.8,,1,", [0.8, 1]),
    ],
)
def test_ranges_mean_what_they_mean_in_the_known_plot(text, expected):
    assert parse_numbers(text, "strengths", 0.25) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " , ", "one", "1-0(+0.1)", "0-1(-0.1)", "0-1(+0)", "0-1[0]", "0-1[9999]", "0-9999(+0.001)", "1;2", "1[1]",
        "__import__",
        "9" * 400, "0-1[" + "9" * 400 + "]", "1e3", "nan", "inf", "0x1", "1-", "-", "0-1(+0.25", ",".join(map(str, range(2000))),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(text):
    with pytest.raises(AtelierError, match="strengths"):
        parse_numbers(text, "strengths", 0.25)


@given(st.text(alphabet="0123456789.-+()[], aelvry", max_size=30))
def test_any_text_gives_numbers_or_one_sentence(text):
    for parse in (parse_strengths, parse_epochs, lambda t: parse_seeds(0, t)):
        try:
            found = parse(text)
        except AtelierError as error:
            assert str(error).split(":")[0] in ("strengths", "which_epochs", "more_seeds") and "\n" not in str(error)
        else:
            assert found


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3) + 0.0), min_size=1, max_size=20, unique=True))
def test_a_typed_list_comes_back(values):
    assert parse_numbers(", ".join(f"{v:f}" for v in values), "strengths", 1) == values


@given(st.integers(-50, 50), st.integers(0, 40), st.integers(1, 8))
def test_a_range_has_equal_steps_and_both_ends_that_fit(first, steps, step):
    values = parse_numbers(f"{first}-{first + steps * step}(+{step})", "strengths", 1)
    assert values == [first + i * step for i in range(steps + 1)]


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(2, 60))
def test_a_count_divides_evenly_between_both_ends(first, last, count):
    values = parse_numbers(f"{first}-{last}[{count}]", "strengths", 1)
    if first == last:
        assert values == [first]
    else:
        assert len(values) == count and values[0] == first and values[-1] == last
        gaps = [b - a for a, b in itertools.pairwise(values)]
        assert max(gaps) - min(gaps) < 1e-5


@given(st.lists(st.floats(-99, 99).map(lambda x: round(x, 2)), min_size=1, max_size=30))
def test_every_strength_comes_once(values):
    found = parse_strengths(", ".join(f"{v:f}" for v in values))
    assert len(set(found)) == len(found) and set(found) == {v + 0.0 for v in values}


def test_strengths_beyond_what_loaders_take_are_refused():
    with pytest.raises(AtelierError, match="strengths: 150"):
        parse_strengths("1, 150")


def test_epochs_are_chosen_and_the_last_is_never_missed():
    saved = (2, 4, 6, 8, 9)
    assert chosen("all", *saved) == chosen("", *saved) == chosen(" ALL ", *saved) == [2, 4, 6, 8, 9]
    assert chosen("every 2", *saved) == [4, 8, 9]
    assert chosen("1-6", *saved) == [2, 4, 6]
    assert chosen("1-20(+2)", *range(1, 11)) == [1, 3, 5, 7, 9]
    assert chosen("9, 2", *saved) == [2, 9]
    assert chosen("2, last", *saved) == [2, 9]
    assert chosen("last", *saved) == [9]
    assert chosen("3", *saved) == []


@given(st.lists(st.integers(1, 99), min_size=1, max_size=30, unique=True).map(sorted), st.integers(1, 40))
def test_every_nth_is_in_order_and_ends_with_the_last(saved, every):
    found = chosen(f"every {every}", *saved)
    assert found == sorted(found) and found[-1] == saved[-1] and set(found) <= set(saved)
    assert len(found) == -(-len(saved) // every)


@pytest.mark.parametrize("text", ["every 0", "every", "1.5", "-1", "first", "1, all"])
def test_wrong_epochs_are_refused_by_name(text):
    with pytest.raises(AtelierError, match="which_epochs"):
        parse_epochs(text)


def test_seeds_come_once_and_exact():
    assert parse_seeds(7, "") == (7,)
    assert parse_seeds(7, "1-3, 7, 9") == (7, 1, 2, 3, 9)
    assert parse_seeds(0, "18446744073709551615") == (0, 2**64 - 1)
    for text in ("-1", "1.5", "18446744073709551616", "0-1[5]", "x"):
        with pytest.raises(AtelierError, match="more_seeds"):
            parse_seeds(0, text)


def test_prompts_are_lines():
    assert prompt_lines("a fox\n\n  an owl \na fox") == ["a fox", "an owl", "a fox"]
    with pytest.raises(AtelierError, match="prompts"):
        prompt_lines(" \n ")


def test_an_axis_has_an_end():
    assert len(parse_numbers("0-1[1000]", "strengths", 1)) == MAX_VALUES
