"""Rising losses are noticed, ordinary scatter is not."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.evaluation.divergence import Watch


def scattered(count: int, scale: float = 0.1, seed: int = 0) -> list[float]:
    """Losses whose size differs as much as those of an eps model at batch 1."""
    stream = random.Random(seed)
    return [scale * stream.lognormvariate(0, 1) for _ in range(count)]


def test_ordinary_scatter_and_a_falling_loss_are_no_alarm():
    for seed in range(10):
        losses = [loss * (0.5 + 0.5 * 0.999**i) for i, loss in enumerate(scattered(3000, seed=seed))]
        watch = Watch()
        assert all(watch.feed([loss]).alarm == "none" for loss in losses)


def test_a_rising_loss_warns_first_and_stops_then():
    watch = Watch()
    alarms = [watch.feed([loss]).alarm for loss in [0.1] * 200 + [0.1 * 1.03**i for i in range(200)]]
    assert alarms[:200] == ["none"] * 200
    assert alarms.index("warning") < alarms.index("stop") and alarms[-1] == "stop"
    assert "none" not in alarms[alarms.index("warning") :]


def test_it_says_how_far_it_has_risen():
    watch = Watch(window=10)
    finding = watch.feed([0.1] * 10 + [0.4] * 10)
    assert finding.alarm == "warning" and finding.why.startswith("The loss has risen to 4.0 times its best (0.4 against 0.1")


def test_a_lost_number_stops_at_once():
    for bad in (float("nan"), float("inf")):
        assert Watch().feed([0.1, bad]).alarm == "stop"


def test_nothing_is_judged_before_the_window_is_full():
    watch = Watch(window=50)
    assert watch.feed([0.1] * 25 + [5.0] * 24).alarm == "none"


def test_losses_of_nothing_are_no_alarm():
    assert Watch(window=5).feed([0.0] * 20 + [0.1] * 20).alarm == "none"


@given(st.lists(st.floats(0.01, 10), max_size=60), st.integers(1, 60))
def test_what_is_fed_at_once_does_not_matter(losses, size):
    whole, parts = Watch(window=7), Watch(window=7)
    at_once = whole.feed(losses)
    found = [parts.feed(losses[i : i + size]) for i in range(0, len(losses), size)]
    if found:
        assert found[-1] == at_once and parts.best == whole.best
