"""A sweep: lines of widgets and values into recipes, and into names that files and people can take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import TrainingConfig, check_run_name, from_dict, sweep, to_dict
from lora_atelier.training.errors import AtelierError

KINDS: dict[str, sweep.Kind] = {
    "rank": int, "learning_rate": float, "weight_decompose": bool, "optimizer": ("AdamW", "Prodigy"),
    "targets": ("attention", "attention + feed-forward"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [{}]),
        ("rank: 8, 16, 32", [{"rank": 8}, {"rank": 16}, {"rank": 32}]),
        ("rank = 8-32(+8)", [{"rank": 8}, {"rank": 16}, {"rank": 24}, {"rank": 32}]),
        ("Learning rate: 1e-4, 5E-4 ,0.001", [{"learning_rate": 1e-4}, {"learning_rate": 5e-4}, {"learning_rate": 1e-3}]),
        ("learning_rate：1e-4，5e-4", [{"learning_rate": 1e-4}, {"learning_rate": 5e-4}]),
        ("learning_rate: 0.5,1e-4,2.5e-4", [{"learning_rate": 0.5}, {"learning_rate": 1e-4}, {"learning_rate": 2.5e-4}]),
        ("optimizer: prodigy、AdamW", [{"optimizer": "Prodigy"}, {"optimizer": "AdamW"}]),
        ("optimizer: prodigy; AdamW", [{"optimizer": "Prodigy"}, {"optimizer": "AdamW"}]),
        ("weight_decompose: on, off, on", [{"weight_decompose": True}, {"weight_decompose": False}]),
        (
            "rank: 8, 16\n\nweight_decompose: off, on",
            [{"rank": r, "weight_decompose": d} for r in (8, 16) for d in (False, True)],
        ),
    ],
)
def test_lines_are_combined(text, expected):
    assert sweep.combinations(text, KINDS) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8, 16", "'8, 16' names no widget"),
        ("name: a, b", "'name' cannot vary. One of these can: learning_rate, optimizer"),
        ("rank:", "rank: write at least one number"),
        ("optimizer: ,", "optimizer has no values"),
        ("rank: 8\nrank: 16", "rank stands in two lines"),
        ("rank: 8, 1.5", "1.5"),
        ("rank: many", "rank"),
        ("learning_rate: 1e-4, x", "write them like 1e-4, 5e-4"),
        ("learning_rate: 1e-4-5e-4", "write them like 1e-4, 5e-4"),
        ("learning_rate: 1e999, 1", "too large"),
        ("rank: 1e-1", "no whole number"),
        ("optimizer: Adam", "'Adam' is not one of AdamW, Prodigy"),
        ("weight_decompose: maybe", "neither on nor off"),
        ("rank: 1-100", "100 trainings or more; at most 50"),
        ("rank: 1-1000\nseed: 1-1000\nepochs: 1-1000", "1000 trainings or more; at most 50"),
        ("learning_rate: 1,5e-4; 3e-4", "'1,5' can be one number or two"),
        (f"rank{' ' * 3000}x", "3005 characters; at most 2000"),
    ],
)
def test_what_cannot_be_read_is_told(text, words):
    with pytest.raises(AtelierError) as caught:
        sweep.combinations(text, KINDS)
    assert words in str(caught.value) and str(caught.value).startswith("sweep")


def test_the_recipe_keeps_what_is_varied():
    (values, *_) = sweep.combinations("targets: attention + feed-forward\nlearning_rate: 5e-5", KINDS)
    config = TrainingConfig("ink", varied=sweep.varied(values))
    assert sweep.label(config.varied) == "targets attention + feed-forward, learning_rate 5e-05"
    assert config.run_name == "ink targets attention + feed-forward learning_rate 5e-05"
    assert from_dict(TrainingConfig, to_dict(config)) == config
    assert TrainingConfig("ink").run_name == "ink"
    assert sweep.axis(["rank=8; seed=1", "rank=8; seed=2"]) == "rank and seed"


def test_a_name_that_grows_too_long_is_refused_before_anything_is_trained():
    with pytest.raises(AtelierError, match="sweep: with its values behind it the name"):
        TrainingConfig("n" * 95, varied="learning_rate=0.0001")


def test_what_is_queued_is_told():
    assert sweep.remarks([""]) == []
    (told,) = sweep.remarks([f"rank={n}" for n in range(1, 9)])
    assert told.startswith("sweep: 8 trainings one after the other (rank 1; ") and "rank 6; and 2 more" in told


@given(st.lists(st.text(max_size=20), max_size=3), st.text(alphabet="0123456789.,-+()[]eE ;\n", max_size=40))
def test_any_text_gives_recipes_or_a_sentence(lines, values):
    for text in ("\n".join(lines), f"rank: {values}", f"learning_rate: {values}"):
        try:
            found = sweep.combinations(text, KINDS)
        except AtelierError as error:
            assert str(error)
            continue
        assert 0 < len(found) <= sweep.MOST
        for one in found:
            check_run_name(sweep.name_of("ink", sweep.varied(one)))
