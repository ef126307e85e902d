"""When a run has learnt what it can, on curves whose course is known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.evaluation.early_stopping import judge, variance_ratio
from lora_atelier.training.evaluation.validation import Validation


def points(training, held_out=None) -> list[Validation]:
    held_out = held_out if held_out is not None else [None] * len(training)
    return [Validation(i + 1, h, t) for i, (t, h) in enumerate(zip(training, held_out, strict=True))]


def first_stop(history: list[Validation]) -> int | None:
    return next((n for n in range(len(history) + 1) if judge(history[:n]).enough), None)


@given(st.lists(st.floats(0.01, 10), min_size=6, max_size=30), st.integers(2, 6))
def test_the_ratio_is_that_of_numpys_variances(curve, window):
    whole = np.var(curve)
    expected = np.var(curve[-window:]) / whole if whole > 0 else 0
    assert math.isclose(variance_ratio(curve, window), expected, rel_tol=1e-6, abs_tol=1e-6)


def test_a_curve_that_settles_is_enough_once_it_has_settled():
    """Half of what is left is won in every epoch: 0.5 %  of it remain after 8."""
    stop = first_stop(points([0.2 + 0.5**i for i in range(30)]))
    assert stop is not None and 6 <= stop <= 10


def test_a_curve_that_falls_steadily_is_not_enough():
    assert first_stop(points([1 - 0.02 * i for i in range(30)])) is None


def test_noise_about_a_settled_value_does_not_delay_it_for_ever():
    stream = random.Random(0)
    stop = first_stop(points([0.3 + math.exp(-i / 3) + stream.gauss(0, 0.005) for i in range(60)]))
    assert stop is not None and stop < 25


def test_before_there_are_more_values_than_the_window_nothing_is_said():
    assert not judge([]).enough
    verdict = judge(points([0.5] * 5))
    assert not verdict.enough and "Only 5 measured" in verdict.why


def test_held_out_pictures_that_got_worse_name_the_epoch_to_take():
    training = [1 / (i + 1) for i in range(8)]
    held = [0.9, 0.7, 0.6, 0.5, 0.55, 0.6, 0.65, 0.7]
    history = points(training, held)
    assert first_stop(history) == 7
    verdict = judge(history)
    assert verdict.enough and verdict.epoch == 4 and "best in epoch 4" in verdict.why
    assert judge(history, patience=5).epoch != 4


def test_a_rise_of_both_curves_is_no_over_fitting():
    assert not judge(points([0.5, 0.4, 0.6, 0.7, 0.8], [0.5, 0.4, 0.6, 0.7, 0.8])).enough


def test_a_lost_number_is_never_enough():
    assert not judge(points([0.5, 0.4, 0.3, 0.3, 0.3, 0.3, float("nan")])).enough


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=20), st.booleans())
def test_every_verdict_is_one_sentence_about_an_epoch_that_was(pairs, with_held):
    history = points([t for t, _ in pairs], [h for _, h in pairs] if with_held else None)
    verdict = judge(history)
    assert verdict.why.endswith(".") and "\n" not in verdict.why
    assert 0 <= verdict.epoch <= len(history)


@pytest.mark.parametrize("constant", [0.0, 0.25])
def test_a_curve_that_never_moves_is_enough(constant):
    assert judge(points([constant] * 6)).enough


def test_rounding_is_no_movement():
    stream = random.Random(1)
    verdict = judge(points([5.8 + stream.uniform(-1e-6, 1e-6) for _ in range(6)]))
    assert verdict.enough and "does not move" in verdict.why
