"""Schedules against those of torch and transformers, stepped one by one, and against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import OptimizerConfig, ScheduleName
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optim import schedules
from torch import nn
from torch.optim import lr_scheduler as torch_schedules

PEAK, TOTAL, WARMUP = 2e-3, 90, 7
INK_AND_LORE = OptimizerConfig(learning_rate=6e-4, schedule="annealing", min_rate=2e-4, cycles=8, cycle_steps=200)


def rates(config: OptimizerConfig, total: int) -> list[float]:
    return [config.peak * schedules.factor(config, step, total) for step in range(total)]


def stepped(make, total: int, peak: float = PEAK) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    reference, out = make(optimizer), []
    for _ in range(total):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    return out


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"schedule": "cosine", "min_rate": 5e-4}, lambda o: torch_schedules.CosineAnnealingLR(o, TOTAL, eta_min=5e-4)),
        ({"schedule": "linear", "min_share": 0.25}, lambda o: torch_schedules.LinearLR(o, 1.0, 0.25, TOTAL)),
        ({"schedule": "polynomial", "power": 3}, lambda o: torch_schedules.PolynomialLR(o, TOTAL, 3)),
        (
            {"schedule": "cosine with restarts", "cycles": 3, "min_share": 0.1},
            lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, TOTAL // 3, eta_min=PEAK / 10),
        ),
        (
            {"schedule": "annealing", "cycles": 9, "cycle_steps": 10, "min_rate": 1e-4},
            lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 10, eta_min=1e-4),
        ),
        ({"schedule": "constant", "warmup_steps": WARMUP}, lambda o: torch_schedules.LinearLR(o, 1 / WARMUP, 1.0, WARMUP - 1)),
    ],
    ids=lambda value: value["schedule"] if isinstance(value, dict) else "",
)
def test_torch_has_the_same_curve(settings, make):
    config = OptimizerConfig(learning_rate=PEAK, **settings)
    assert rates(config, TOTAL) == pytest.approx(stepped(make, TOTAL), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize(
    ("settings", "name", "arguments"),
    [
        ({"schedule": "constant"}, "get_constant_schedule_with_warmup", {}),
        ({"schedule": "linear"}, "get_linear_schedule_with_warmup", {"num_training_steps": TOTAL}),
        ({"schedule": "cosine"}, "get_cosine_schedule_with_warmup", {"num_training_steps": TOTAL}),
        (
            {"schedule": "cosine", "min_rate": 2e-4},
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"num_training_steps": TOTAL, "min_lr": 2e-4},
        ),
        (
            {"schedule": "cosine with restarts", "cycles": 5},
            "get_cosine_with_hard_restarts_schedule_with_warmup",
            {"num_training_steps": TOTAL, "num_cycles": 5},
        ),
        (
            {"schedule": "polynomial", "power": 2, "min_rate": 1e-5},
            "get_polynomial_decay_schedule_with_warmup",
            {"num_training_steps": TOTAL, "power": 2, "lr_end": 1e-5},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transformers_has_the_same_curve(settings, name, arguments, warmup):
    """From the end of warmup on: theirs begins at 0, where the first step would learn nothing, ours one step higher."""
    transformers = pytest.importorskip("transformers.optimization")
    config = OptimizerConfig(learning_rate=PEAK, warmup_steps=warmup, **settings)
    theirs = stepped(lambda o: getattr(transformers, name)(o, num_warmup_steps=warmup, **arguments), TOTAL + 1)
    ours = rates(config, TOTAL)
    assert ours[warmup:] == pytest.approx(theirs[warmup:TOTAL], rel=1e-9, abs=1e-15)
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1], rel=1e-9)


def test_the_published_annealing():
    """Max 6e-4, min 2e-4, a cycle every 200 steps, 8 cycles, then flat at 2e-4 to the end of 2000 steps."""
    low = 2e-4 + 2e-4 * (1 + math.cos(math.pi * 199 / 200))
    expected = {0: 6e-4, 100: 4e-4, 199: low, 200: 6e-4, 1400: 6e-4, 1599: low, 1600: 2e-4, 1999: 2e-4}
    curve = rates(INK_AND_LORE, 2000)
    assert {step: curve[step] for step in expected} == pytest.approx(expected, rel=1e-12)
    assert set(curve[1600:]) == {curve[1600]}
    assert low == pytest.approx(2.00025e-4, rel=1e-5)


@given(cycles=st.integers(1, 60), length=st.integers(1, 60))
def test_every_cycle_starts_at_the_peak(cycles, length):
    total = cycles * length
    config = OptimizerConfig(schedule="cosine with restarts", cycles=cycles)
    for cycle in range(cycles):
        assert schedules.factor(config, cycle * length, total) == 1.0
    assert schedules.factor(config, total, total) == 0.0


@given(
    schedule=st.sampled_from(get_args(ScheduleName)),
    total=st.integers(1, 5000),
    data=st.data(),
    warmup_steps=st.integers(0, 300),
    min_share=st.floats(0, 1),
    cycles=st.integers(1, 40),
    cycle_steps=st.integers(0, 500),
    power=st.floats(0.01, 10),
)
def test_a_factor_lies_between_the_minimum_and_one(schedule, total, data, **settings):
    config = OptimizerConfig(schedule=schedule, **settings)
    step = data.draw(st.integers(0, total))
    value = schedules.factor(config, step, total)
    assert 0 <= value <= 1 + 1e-12
    if step >= config.warmup_steps:
        assert value >= config.min_share - 1e-12


@given(st.sampled_from(["linear", "cosine", "polynomial"]), st.integers(2, 400), st.floats(0, 1))
def test_a_schedule_without_restarts_never_rises(schedule, total, low):
    curve = rates(OptimizerConfig(schedule=schedule, min_share=low), total)
    assert all(later <= earlier + 1e-18 for earlier, later in itertools.pairwise(curve))


def test_warmup_by_a_share_is_warmup_by_steps():
    by_share = OptimizerConfig(warmup_share=0.07)
    assert schedules.warmup_steps(by_share, 100) == 7
    assert rates(by_share, 100) == rates(OptimizerConfig(warmup_steps=7), 100)


@pytest.mark.parametrize(
    ("settings", "total", "said"),
    [
        ({"warmup_steps": 500}, 400, "warmup: 500 steps, but the run has only 400"),
        ({"warmup_steps": 400}, 400, "never be reached"),
        ({"schedule": "cosine with restarts", "cycles": 11}, 10, "cycles: 11 do not fit into 10 steps"),
        ({"schedule": "annealing", "cycles": 8, "cycle_steps": 200}, 2000, "for the last 400 steps"),
    ],
)
def test_what_does_not_fit_into_the_run_is_said(settings, total, said):
    with pytest.raises(AtelierError) as caught:
        schedules.check(OptimizerConfig(**settings), total)
    assert said in str(caught.value)


def test_what_fits_passes():
    schedules.check(INK_AND_LORE, 2000)
    schedules.check(OptimizerConfig(), 1)
    schedules.check(OptimizerConfig(warmup_share=0.9), 1)
    schedules.check(OptimizerConfig(schedule="annealing", cycles=8, cycle_steps=200), 1600)
