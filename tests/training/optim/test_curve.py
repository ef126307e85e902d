"""What is shown of a schedule before it runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import OptimizerConfig
from lora_atelier.training.optim import schedules
from lora_atelier.training.optim.curve import curve, rate_text, summary

from .test_schedules import INK_AND_LORE


def test_every_restart_is_drawn():
    drawn = dict(curve(INK_AND_LORE, 2000, 50))
    for cycle in range(8):
        assert drawn[cycle * 200] == 6e-4
        assert drawn[cycle * 200 + 199] < 2.001e-4
    assert {drawn[1600], drawn[1999]} == {2e-4}


@given(
    total=st.integers(1, 3000),
    points=st.integers(2, 300),
    schedule=st.sampled_from(["constant", "cosine", "cosine with restarts", "annealing"]),
    cycles=st.integers(1, 500),
    warmup_share=st.floats(0, 0.5),
)
def test_points_lie_on_the_curve(total, points, **settings):
    config = OptimizerConfig(**settings)
    drawn = curve(config, total, points)
    steps = [step for step, _ in drawn]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, total - 1)
    assert len(steps) <= 2 * points
    assert all(rate == config.peak * schedules.factor(config, step, total) for step, rate in drawn)


@pytest.mark.parametrize(
    ("config", "total", "line"),
    [
        (INK_AND_LORE, 2000, "annealing: 6e-4 → 2e-4 at step 2000, 8 cycles of 200 steps"),
        (OptimizerConfig(schedule="constant"), 10, "constant: 1e-4"),
        (
            OptimizerConfig(warmup_steps=4, learning_rate=2e-3, schedule="linear", min_share=0.1),
            8,
            "linear: 5e-4 → 2e-3 at step 4 → 6.5e-4 at step 8",
        ),
        (OptimizerConfig("Prodigy", 1, schedule="constant"), 9, "constant: 1, times the rate that Prodigy estimates"),
        (
            OptimizerConfig("Adafactor", schedule="constant", optimizer_args="relative_step=True"),
            9,
            "Adafactor sets its own rate; learning rate and schedule are not used",
        ),
    ],
)
def test_the_sentence(config, total, line):
    assert summary(config, total) == line


def test_rates_are_written_as_they_are_spoken():
    assert [rate_text(r) for r in (6e-4, 0.0, 1.0, 0.05, 9.999e-5, 1.25e-7, 0.009999)] == [
        "6e-4", "0", "1", "0.05", "1e-4", "1.25e-7", "1e-2",
    ]  # fmt: skip
