"""Wildcards fit what the textbook's definition says, and no pattern makes them try again and again."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config.wildcards import Wildcards


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_as_the_standard_library_has_it(pattern: str, text: str) -> None:
    assert Wildcards(pattern).matches(text) == fnmatch.fnmatchcase(text, pattern)


@given(st.text(max_size=12), st.text(max_size=12))
def test_what_means_something_to_an_expression_means_nothing_here(pattern: str, text: str) -> None:
    """The definition itself, for patterns of up to twelve characters: ``*`` takes any number of characters."""

    def fits(at: int, place: int) -> bool:
        if at == len(pattern):
            return place == len(text)
        if pattern[at] == "*":
            return any(fits(at + 1, later) for later in range(place, len(text) + 1))
        return place < len(text) and pattern[at] == text[place] and fits(at + 1, place + 1)

    assert Wildcards(pattern).matches(text) == fits(0, 0)


@pytest.mark.parametrize("pattern", ["*a" * 200 + "!", "a*" * 200 + "!", "*" * 500 + "!", "*aa*" * 100 + "b*!"])
def test_a_pattern_that_an_expression_would_never_end_on_does(pattern: str) -> None:
    text = "a" * 100_000
    assert not Wildcards(pattern).matches(text)
    assert Wildcards(pattern.replace("!", "*").replace("b", "a")).matches(text)
