"""Timed passes before a run."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.estimate import preflight, step_time


def session_of() -> Any:
    return SimpleNamespace(adapter=SimpleNamespace(attached=lambda _layers: nullcontext()), layers={})


class Clock:
    """Each pass takes less of it than the one before."""

    now, first = 0.0, 1.0

    def __init__(self) -> None:
        self.passes = 0

    def monotonic(self) -> float:
        return self.now

    def one_picture(self, _session: object, _batch: object) -> torch.Tensor:
        self.passes += 1
        self.now += self.first / self.passes
        return torch.zeros(())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(preflight, "time", found)
    monkeypatch.setattr(preflight, "_one_picture", found.one_picture)
    return found


def test_the_quickest_of_a_few_counts(clock: Clock) -> None:
    assert preflight.pass_seconds(session_of(), object()) == 0.5 and clock.passes == step_time.PASSES  # type: ignore[arg-type]


def test_one_that_takes_long_is_enough(clock: Clock) -> None:
    clock.first = 2 * preflight.LONG
    assert preflight.pass_seconds(session_of(), object()) == 10 and clock.passes == 1  # type: ignore[arg-type]


def test_a_cancel_comes_through_between_them(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        if clock.passes:
            raise KeyboardInterrupt

    monkeypatch.setattr(host, "check_interrupt", check)
    with pytest.raises(KeyboardInterrupt):
        preflight.pass_seconds(session_of(), object())  # type: ignore[arg-type]
    assert clock.passes == 1


def test_without_memory_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(preflight, "_one_picture", full)
    assert preflight.pass_seconds(session_of(), object()) is None  # type: ignore[arg-type]
