"""The axes as they are typed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import numbers
from lora_atelier.training.config.numbers import MAX_VALUES
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid.axes import parse_epochs, parse_seeds, parse_strengths, prompt_lines


@dataclass(frozen=True)
class Saved:
    epoch: int
    step: int = 0

    @property
    def counted(self) -> int:
        return self.step or self.epoch


def parse_numbers(text: str, widget: str, default_step: float) -> list[float]:
    return [float(value) for value in numbers.numbers(text, widget, (str(default_step),))]


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
        "", " , ", "one", "1-0(+0.1)", "0-1(-0.1)", "0-1(+0)", "0-1[0]", "0-1[9999]", "0-9999(+0.001)", "1/2", "1[1]",
        "__import__",
        "9" * 400, "0-1[" + "9" * 400 + "]", "1e3", "nan", "inf", "0x1", "1-", "-", "0-1(+0.25", ",".join(map(str, range(2000))),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(text):
    with pytest.raises(AtelierError, match="strengths"):
        parse_numbers(text, "strengths", 0.25)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.6-1.0", [0.6, 0.8, 1.0]),
        ("0.7-1", [0.7, 0.8, 0.9, 1.0]),
        ("0-1", [0, 0.25, 0.5, 0.75, 1]),
        ("0-0.33", [0, *(i / 100 for i in range(1, 34))]),
        ("0-0.333", [0, 0.25, 0.333]),
        ("1-0", [1, 0.75, 0.5, 0.25, 0]),
        ("0.6–1.0", [0.6, 0.8, 1.0]),
        ("0.6—1.0", [0.6, 0.8, 1.0]),
        ("0.6~1.0", [0.6, 0.8, 1.0]),
        ("−0.5", [-0.5]),
        ("−0.5–0.5(+0.5)", [-0.5, 0, 0.5]),
        ("-0.5..-0.25", [-0.5, -0.25]),
        ("0.2:1.0:0.2", [0.2, 0.4, 0.6, 0.8, 1.0]),
        ("1:0:-0.5", [1, 0.5, 0]),
        ("0:1", [0, 0.25, 0.5, 0.75, 1]),
        ("0:1[3]", [0, 0.5, 1]),
        ("0..1", [0, 0.25, 0.5, 0.75, 1]),
        ("0…1(+0.5)", [0, 0.5, 1]),
        (".5", [0.5]),
        ("1.", [1]),
        ("+.5, -.5", [0.5, -0.5]),
        (".5-1.", [0.5, 0.75, 1]),
        ("0-1(+.5)", [0, 0.5, 1]),
        ("0.6;0.8", [0.6, 0.8]),
        ("0.6\n0.8", [0.6, 0.8]),
        ("0.6 0.8  1", [0.6, 0.8, 1]),
        ("0.6,0.8,1", [0.6, 0.8, 1]),
        ("0,6; 0,8; 1", [0.6, 0.8, 1]),
        ("0,6, 0,8, 1,0", [0.6, 0.8, 1]),
        ("0,6 0,8 1,0", [0.6, 0.8, 1]),
        ("0-1(+0,5)", [0, 0.5, 1]),
        ("０．６，０．８、１．０", [0.6, 0.8, 1]),
        ("０.６－１.０", [0.6, 0.8, 1]),
        ("1, 1.0, 1.00, +1", [1]),
        ("-0, 0", [0]),
        ("0-1(+0.1)", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    ],
)
def test_numbers_are_read_as_people_type_them(text, expected):
    assert list(parse_strengths(text)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,6", "can be 0.6 or 0 and 6"),
        ("0,6,0,8", "decimals with a point"),
        ("0,5-1", "decimals with a point"),
        ("1,2,3", "a blank behind a comma"),
        ("1 -0.5", "a range or two numbers"),
        ("60%, 80%", "write it as 0.6"),
        ("NaN", "neither a number"),
        ("inf", "neither a number"),
        ("1e9", "neither a number"),
        ("1000000000", "beyond 100"),
        ("0-1e9", "neither a number"),
        ("0.0000001", "six decimal places"),
        ("1²", "neither a number"),
        ("٠.٥", "neither a number"),
        ("½", "neither a number"),
        ("0.6.8", "neither a number"),
        ("0:1:0", "leads nowhere"),
        ("0:1:-0.5", "leads nowhere"),
    ],
)
def test_what_has_two_readings_or_none_is_refused_with_the_way_out(text, said):
    with pytest.raises(AtelierError, match="strengths: ") as told:
        parse_strengths(text)
    assert said in str(told.value)


@given(st.integers(-300, 300), st.integers(0, 300), st.integers(1, 60), st.sampled_from("-–—−~"))
def test_a_range_of_hundredths_ends_where_it_says(first, steps, step, dash):
    """The reference counts in whole hundredths, where nothing is rounded."""
    last = first + steps * step
    typed = f"{first / 100:.2f}{dash}{last / 100:.2f}(+{step / 100:.2f})"
    assert parse_numbers(typed, "strengths", 1) == [(first + i * step) / 100 for i in range(steps + 1)]
    open_end = parse_numbers(typed.partition("(")[0], "strengths", 0.25)
    assert open_end[0] == first / 100 and open_end[-1] == last / 100


@given(st.text(max_size=40))
def test_any_characters_give_finite_strengths_or_one_sentence(text):
    try:
        found = parse_strengths(text)
    except AtelierError as error:
        assert str(error).startswith("strengths: ")
    else:
        assert all(abs(value) <= 100 for value in found)


@given(st.text(alphabet="0123456789.-+()[], aelvry:;", max_size=30))
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
    assert chosen("2,4,6", *saved) == chosen("2 4 6", *saved) == chosen("２，４、６", *saved) == [2, 4, 6]
    assert chosen("2–6", *saved) == chosen("2..6", *saved) == chosen("2:6", *saved) == [2, 4, 6]
    assert chosen("every2", *saved) == chosen("every 2nd", *saved) == [4, 8, 9]


def test_epochs_that_are_not_there_are_told():
    choice = parse_epochs("2, 3, 8-20, last")
    assert choice.missing([Saved(2), Saved(8)]) == [3]
    assert parse_epochs("all").missing([Saved(1)]) == []


def test_where_no_epoch_is_known_the_steps_are_chosen_by():
    assert parse_epochs("500").of([Saved(0, 250), Saved(0, 500)]) == [Saved(0, 500)]


def test_a_file_is_found_by_the_number_that_its_column_shows():
    saved = [Saved(1, 500), Saved(2, 1000), Saved(3)]
    choice = parse_epochs("500, 3, 7")
    assert choice.of(saved) == [saved[0], saved[2]] and choice.missing(saved) == [7]
    assert parse_epochs("500-1000(+500)").of(saved) == saved[:2]
    assert parse_epochs("2").of([Saved(1, 2), Saved(2, 4)]) == [Saved(2, 4)], "an epoch of that number comes first"


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
    assert parse_seeds(0, "1,2,3") == parse_seeds(0, "1 2 3") == parse_seeds(0, "１–３") == parse_seeds(0, "1:3") == (0, 1, 2, 3)
    for text in ("-1", "1.5", "18446744073709551616", "0-1[5]", "x"):
        with pytest.raises(AtelierError, match="more_seeds"):
            parse_seeds(0, text)


def test_prompts_are_lines():
    assert prompt_lines("a fox\n\n  an owl \na fox") == ["a fox", "an owl", "a fox"]
    with pytest.raises(AtelierError, match="prompts"):
        prompt_lines(" \n ")


def test_an_axis_has_an_end():
    assert len(parse_numbers("0-1[1000]", "strengths", 1)) == MAX_VALUES
