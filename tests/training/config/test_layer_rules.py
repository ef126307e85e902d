"""Patterns and rules by layer name: what they mean, and which line is wrong."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.config.layer_rules import parse_patterns, parse_rules
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.targets import select, settings
from torch import nn


def one(text: str):
    (pattern,) = parse_patterns("include", text)
    return pattern


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("double_blocks.0-9.*", ["double_blocks.0.img.qkv", "double_blocks.9.x"], ["double_blocks.10.x", "double_blocks.0"]),
        ("blocks.0,3,7-8.attn", ["blocks.3.attn", "blocks.8.attn"], ["blocks.1.attn", "blocks.30.attn", "x.blocks.3.attn"]),
        ("blocks.1.*", ["blocks.1.attn"], ["blocks.11.attn"]),
        ("*.to_?", ["a.b.to_q"], ["a.b.to_out"]),
        ("a+b.(c)", ["a+b.(c)"], ["aab.c"]),
        (r"re:attn[12]\.to_q$", ["x.attn1.to_q"], ["x.attn3.to_q", "x.attn1.to_q.0"]),
    ],
)
def test_what_a_pattern_matches(pattern, yes, no):
    assert [n for n in yes + no if one(pattern).matches(n)] == yes


PARTS = st.text(alphabet="ab*?_", min_size=1, max_size=4)


@given(st.lists(PARTS, min_size=1, max_size=4).map(".".join), st.lists(PARTS, min_size=1, max_size=4).map(".".join))
def test_without_numbers_a_pattern_is_a_glob(pattern, name):
    assert one(pattern).matches(name) == fnmatch.fnmatchcase(name, pattern)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 9999))
def test_a_range_matches_its_numbers_and_no_others(a, b, n):
    low, high = sorted((a, b))
    assert one(f"blocks.{low}-{high}.x").matches(f"blocks.{n}.x") == (low <= n <= high)


@pytest.mark.parametrize(
    "line", ["*a" * 60 + "!", "?*" * 60 + "!", "*." * 30 + "0-9999." * 30 + "x", r"re:(\w+)+!", "*a?" * 40 + "!"]
)
def test_no_pattern_keeps_the_server_busy(line):
    assert not one(line).matches("a" * 5000) and not one(line).matches("1." * 2000)


def test_numbers_that_are_too_long_are_refused_and_matched_to_the_last_digit():
    with pytest.raises(AtelierError, match="is no range of numbers"):
        one(f"blocks.0-{'9' * 5000}.x")
    assert [n for n in ("3", "03", "30", "9" * 5000, "") if one("blocks.*.1-3.x").matches(f"blocks.a.{n}.x")] == ["3"]
    assert one("1,2").matches("2") and not one("*.1,2").matches("a.12")


RANK, ALPHA = st.none() | st.integers(1, 1024), st.none() | st.floats(0, 1024)
RATE = st.none() | st.floats(1e-6, 1e6)


@given(st.lists(st.tuples(RANK, ALPHA, RATE).filter(any), max_size=5))
def test_every_rule_is_read_as_it_was_written(wanted):
    lines = ["# by block", ""]
    for i, values in enumerate(wanted):
        parts = [f"{key}={value!r}" for key, value in zip(("rank", "alpha", "rate"), values, strict=True) if value is not None]
        lines.append(f"  blocks.{i}.*  " + "   ".join(parts))
    rules = parse_rules("\n".join(lines))
    assert [(r.rank, r.alpha, r.rate) for r in rules] == wanted
    assert [r.pattern.where for r in rules] == [f"rules, line {i + 3}" for i in range(len(wanted))]


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_its_line(text):
    for parse in (parse_rules, lambda t: parse_patterns("exclude", t)):
        try:
            parse(text)
        except AtelierError as error:
            assert "line " in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.*", "rules, line 1: 'a.*' sets nothing"),
        ("# first\n\na.* rank=8 rnk=4", "rules, line 3: 'rnk=4' is none of rank=, alpha= and rate="),
        ("a.* rank = 8", "rules, line 1: 'rank' is none of"),
        ("a.* rank=8 rank=9", "rules, line 1: rank is set twice"),
        ("a.* rank=eight", "rules, line 1: rank=eight is not a number"),
        ("a.* rank=2.5", "rules, line 1: rank=2.5 is not a whole number"),
        ("a.* rank=0", "rules, line 1: rank=0 is outside 1 to 1024"),
        ("a.* alpha=nan", "rules, line 1: alpha=nan is outside 0 to 1024"),
        ("a.* rate=0", "rate=0 is outside 1e-06 to 1e+06; to leave layers out, use exclude"),
        ("re:( rank=8", "rules, line 1: 're:(' is no regular expression"),
        ("a.9-3.* rank=8", "rules, line 1: '9-3' is no range"),
        ("a.0-99999 rank=8", "at most 9999"),
    ],
)
def test_a_wrong_rule_names_its_line(text, said):
    with pytest.raises(AtelierError) as caught:
        NetworkConfig(rules=text)
    assert said in str(caught.value)


def test_numbers_of_other_keyboards_are_read():
    rules = parse_rules("a.0–9.* rate=0,5 alpha=.5 rank=８")
    assert (rules[0].rank, rules[0].alpha, rules[0].rate) == (8, 0.5, 0.5) and rules[0].pattern.matches("a.7.x")
    for wrong in ("rate=0,5,1", "rate=1_0", "rate=1.000,5"):
        with pytest.raises(AtelierError, match="is not a number"):
            parse_rules(f"a.* {wrong}")


def test_include_and_exclude_are_checked_when_set():
    for widget in ("include", "exclude"):
        with pytest.raises(AtelierError, match=rf"{widget}, line 2: 're:\[' is no regular expression"):
            NetworkConfig(**{widget: "a\nre:["})


def model() -> dict[str, nn.Module]:
    out: dict[str, nn.Module] = {f"blocks.{i}.attn.qkv": nn.Linear(4, 4) for i in range(4)}
    return out | {
        "blocks.0.mlp.0": nn.Linear(4, 4),
        "conv": nn.Conv2d(4, 4, 3),
        "pixel": nn.Conv2d(4, 4, 1),
        "norm": nn.LayerNorm(4),
    }


def test_include_takes_the_place_of_the_preset_and_exclude_takes_away():
    assert set(select(model(), NetworkConfig(targets="attention"))) == {f"blocks.{i}.attn.qkv" for i in range(4)}
    assert set(select(model(), NetworkConfig(include="conv\n*.mlp.*"))) == {"conv", "blocks.0.mlp.0"}
    chosen = select(model(), NetworkConfig(targets="attention", exclude="blocks.1-2.*"))
    assert list(chosen) == ["blocks.0.attn.qkv", "blocks.3.attn.qkv"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (NetworkConfig(include="blocks.7.*"), "include, line 1: 'blocks.7.*' matches no layer of the loaded model; its layers"),
        (NetworkConfig(exclude="conv\nnorm"), "exclude, line 2: 'norm' matches no layer"),
        (NetworkConfig(exclude="*"), "exclude: it leaves no layer"),
    ],
)
def test_a_pattern_that_matches_nothing_is_named(config, said):
    with pytest.raises(AtelierError) as caught:
        select(model(), config)
    assert said in str(caught.value)


def test_a_rule_that_matches_nothing_is_named():
    layers = select(model(), NetworkConfig(targets="attention"))
    with pytest.raises(AtelierError, match=r"rules, line 2: 'conv' matches no layer that is trained; its layers have names such"):
        settings(layers, NetworkConfig(rules="blocks.0.* rank=2\nconv rank=3"))


def test_ranks_scales_and_rates_of_layers():
    layers = select(model(), NetworkConfig(include="*"))
    text = "blocks.* rank=8\nblocks.1-2.* alpha=2 rate=0.5\nblocks.2.* rank=2 alpha=0"
    found = settings(layers, NetworkConfig(16, 8.0, conv_rank=4, conv_alpha=1.0, rules=text))
    assert {n: (s.rank, s.scale, s.rate) for n, s in found.items()} == {
        "blocks.0.attn.qkv": (8, 0.5, 1.0),  # alpha keeps its ratio of 8 / 16
        "blocks.1.attn.qkv": (8, 0.25, 0.5),
        "blocks.2.attn.qkv": (2, 1.0, 0.5),  # alpha 0 is the rank
        "blocks.3.attn.qkv": (8, 0.5, 1.0),
        "blocks.0.mlp.0": (8, 0.5, 1.0),
        "conv": (4, 0.25, 1.0),
        "pixel": (16, 0.5, 1.0),  # one pixel counts as linear
    }
    assert settings(layers, NetworkConfig(16, 8.0, rank_stabilised=True))["conv"].scale == 2.0
    assert settings(layers, NetworkConfig(16, 8.0, conv_rank=4))["conv"].scale == 0.5
