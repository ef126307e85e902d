"""Regular expressions of people: what Python's engine says of those that it ends on, and an end for the others."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.config.expressions import Expression

NAMES = [
    "double_blocks.0.img_attn.qkv", "double_blocks.19.img_mlp.0", "single_blocks.37.linear1", "input_blocks.4.1.attn1.to_q",
    "x.attn1.to_q.0", "", "a", "ab", "aab", "time_embed.0",
]  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        r"attn[12]\.to_q$", r"^double_blocks\.(?:[0-9]|1\d)\.", "attn|mlp", r"blocks\.\d{1,2}\.", r"(?i)ATTN", r"\bimg", r"\Bimg",
        r"[^a-z_.]", "(a|b)*ab", "a{2}b", "a{2,}", "a{,1}b$", "a+?b", "x?", "", r"[]a]", r"[a\-z]", r"\.to_[qkv]\Z", r"\Atime",
        "a{", "a{x}", ".", r"\w+\W\w", "(?P<n>attn)", r"[\d.]+$", "(?:)", "a||b", r"\D\S",
    ],
)  # fmt: skip
def test_as_python_has_it_on_names_of_layers(source: str) -> None:
    mine, other = Expression(source), re.compile(source)
    assert [name for name in NAMES if mine.found_in(name)] == [name for name in NAMES if other.search(name)]


LEAVES = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", "^", "$", r"\b", "x"])
SOURCES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("(?:{})".format),
        st.tuples(inner.map("(?:{})".format), st.sampled_from(["*", "+", "?", "{1,2}", "{2}", "*?"])).map("".join),
    ),
    max_leaves=8,
)


@settings(max_examples=400)
@given(SOURCES, st.text("abx.", max_size=6))
def test_as_python_has_it(source: str, text: str) -> None:
    assert Expression(source).found_in(text) == bool(re.search(source, text)), source


@pytest.mark.parametrize(
    "source", [r"(a+)+!", r"(\w+)+!", r"(a|a)*!", r"(a*)*!", r"(a|aa)+$!", "(?:a?){60}a{60}!", r"(.*a){20}!"]
)
def test_an_expression_that_would_never_end_does(source: str) -> None:
    assert not Expression(source).found_in("a" * 3000)
    assert Expression(source.replace("!", "").replace("$", "")).found_in("a" * 3000)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("(", "not closed"), (")", "has no"), ("[", "ends too early"), ("*", "nothing to repeat"), ("a**", "two repetitions"),
        ("a\\", "ends too early"), (r"(a)\1", "not offered"), ("(?=a)", "not offered"), ("(?<!a)", "not offered"),
        ("a{101}", "repetitions"), ("a{3,2}", "repetitions"), ("((a{100}){100}){100}", "too long"), ("[z-a]", "no range"),
        ("(" * 40 + ")" * 40, "too deep"), ("^*", "nothing to repeat"),
    ],
)  # fmt: skip
def test_what_is_none_or_not_offered_says_why(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Expression(source)


@given(st.text(r"ab()[]{}|*+?^$\\.-,12dwsbAZ:P<>=!i", max_size=30), st.text(max_size=10))
def test_any_text_is_an_expression_or_refused(source: str, text: str) -> None:
    found: Any = None
    try:
        found = Expression(source).found_in(text)
    except ValueError as error:
        assert str(error)
    assert found in (None, True, False)
