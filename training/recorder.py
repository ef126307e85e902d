"""The loop's bookkeeping: its callbacks, the history of losses, and progress reports.

Losses stay on the device until a report, because reading one waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .evaluation.divergence import Finding, Watch
from .evaluation.early_stopping import Verdict, judge
from .evaluation.validation import Validation
from .runs.followed import Followed
from .runs.record import SaveKind
from .runs.run import Run, finite
from .session import Session


@dataclass
class Progress:
    """What the loop tells while it runs; all numbers are plain Python ones."""

    step: int
    total: int
    epoch: int
    """1-based."""
    epochs: int
    loss: float
    """Mean over the recent steps."""
    rate: float
    """Learning rate of the last step."""
    steps_per_second: float
    seconds_left: float


@dataclass
class Callbacks:
    """The loop's way to the outside; every callable may raise to stop the run."""

    check: Callable[[], None] = lambda: None
    """Called before every step, and before every batch that is only looked at; raises when the person cancelled."""
    progress: Callable[[Progress], None] = lambda _: None
    """Called a few times a second at most."""
    save: Callable[[SaveKind, int, int], None] = lambda kind, epoch, step: None
    """Writes the LoRA file of a ``kind`` (``epoch``, ``step``, ``last``, ``moment``)."""
    sample: Callable[[int, int], None] | None = None
    """Draws the sample pictures; the model is let go for it. None: there are none."""
    draws_apart: bool = False
    """Whether they are drawn with another network."""
    measured: Callable[[Validation, Verdict], None] = lambda _validation, _verdict: None
    """Called with the fixed losses of an epoch and what follows from them."""
    warn: Callable[[str], None] = lambda _: None
    """Called once when the loss runs away, when compiling fails, and when a setting changes for want of memory."""
    commands: Callable[[], frozenset[str]] = frozenset
    """Called after every step: what the person wants at once (``live.Command``)."""
    cancelled: Callable[[BaseException], bool] = lambda _: False
    """Whether an error is the person's cancel."""
    interval: float = 0.5
    """Seconds between two reports; a report costs the one device sync there is."""
    snapshot_interval: float = 300.0
    """Seconds between two snapshots of the state inside an epoch; there is one at the end of every epoch as well."""


@dataclass
class Clock:
    """Speed over the recent steps and the time that is left."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0

    def report(self, left: int) -> tuple[float, float]:
        """(steps a second, seconds left)."""
        speed = self.steps / max(1e-9, time.monotonic() - self.started)
        return speed, left / speed if speed > 0 else 0.0


class Recorder:
    """What the loop writes down and tells. Losses stay on the device until it is time: reading one is a sync."""

    def __init__(self, session: Session, run: Run | Followed, callbacks: Callbacks, step: int, due: bool = False):
        self._run, self._adapter, self._plan, self._config = run, session.adapter, session.plan, session.config
        self._callbacks, self._total = callbacks, session.total_steps
        self._step, self._pending = step, list[tuple[Tensor, float]]()
        self._clock, self._reported, self.snapped = Clock(), time.monotonic(), time.monotonic()
        self._watch, self._warned = Watch(), False
        rows = run.cut_history(step)
        if lost := step - len({row["step"] for row in rows}):
            callbacks.warn(f"history: the losses of {lost} of the first {step} steps are gone; what was learnt in them is not")
        finding = self._watch.feed(row["loss"] for row in rows)
        self.diverged = self._stops(finding)
        """Whether the run shall end because its loss runs away."""
        # What was measured at the very step whose end is still due is measured again.
        self._measured = [Validation(r["epoch"], r["held_out"], r["training"]) for r in run.cut_measured(step - due)]

    def start_clock(self) -> None:
        """What was done before the first step is no part of its pace."""
        self._clock = Clock()
        self._reported = self.snapped = time.monotonic()

    def enter(self, step: int, loss: Tensor, rate: float) -> None:
        self._step = step
        self._clock.steps += 1
        self._pending.append((loss, rate))

    def due(self) -> bool:
        return time.monotonic() - self._reported > self._callbacks.interval

    def wants_snapshot(self) -> bool:
        return time.monotonic() - self.snapped > self._callbacks.snapshot_interval

    def settle(self) -> list[dict[str, Any]]:
        """Reads the pending losses and writes them down; raises when a number is gone."""
        if not self._pending:
            return []
        values = torch.stack([loss for loss, _ in self._pending]).tolist()
        first = self._step - len(values) + 1
        rows = [
            {"step": s, "epoch": self._plan.epoch_of(s - 1) + 1, "loss": value, "rate": rate}
            for s, (value, (_, rate)) in enumerate(zip(values, self._pending, strict=True), start=first)
        ]
        bad = next((row for row in rows if not (math.isfinite(row["loss"]) and math.isfinite(row["rate"]))), None)
        if bad is not None or not finite(self._adapter.state()):
            raise LostNumbers(bad["step"] if bad else self._step)
        self._run.append_history(rows)
        self._pending.clear()
        return rows

    def sound(self) -> bool:
        """Writes the pending losses down; whether all numbers are still there, so that the state may be kept."""
        try:
            self.settle()
        except LostNumbers:
            return False
        return finite(self._adapter.state())

    def report(self) -> None:
        """Tells how it goes, and finds out whether the loss runs away."""
        rows = self.settle()
        speed, left = self._clock.report(self._total - self._step)
        mean = sum(row["loss"] for row in rows) / len(rows)
        epochs = self._plan.epochs_for(self._total)
        last = rows[-1]
        self._callbacks.progress(Progress(self._step, self._total, last["epoch"], epochs, mean, last["rate"], speed, left))
        self._reported = time.monotonic()
        finding = self._watch.feed(row["loss"] for row in rows)
        if finding.alarm != "none" and not self._warned:
            self._callbacks.warn(finding.why)
            self._warned = True
        self.diverged = self._stops(finding)

    def _stops(self, finding: Finding) -> bool:
        return finding.alarm == "stop" and self._config.length.on_divergence == "stop"

    def judged(self, validation: Validation, step: int) -> bool:
        """Writes the fixed losses of an epoch down; True if it is enough, and the run shall end then."""
        if not all(math.isfinite(loss) for loss in (validation.training, validation.held_out or 0.0)):
            self._callbacks.warn(
                f"epoch {validation.epoch}: the fixed loss is NaN or infinite, so it is not counted. Set precision to bf16 or "
                "fp32."
            )
            return False
        self._measured.append(validation)
        self._run.append_measured(validation.epoch, step, validation.held_out, validation.training)
        verdict = judge(self._measured)
        self._callbacks.measured(validation, verdict)
        return verdict.enough and self._config.length.when_enough == "stop"


class LostNumbers(Exception):
    """A loss or a weight is not finite."""

    def __init__(self, step: int):
        super().__init__(f"the numbers became NaN or infinite at step {step}")
        self.step = step
