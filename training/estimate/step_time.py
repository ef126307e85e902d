"""Time of a step before the first one: from an earlier run like this one on this device, else from a timed pass.

It depends on so much that only runs are compared which are alike in all that is in ``circumstances``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import TrainingConfig, to_dict
from ..dataset.controls import NONE, Controls
from ..dataset.plan import Plan
from ..dataset.samples import counted
from ..dataset.views import view
from ..errors import AtelierError
from ..performance.thrift import Thrift
from ..runs.layout import RUN_FILE
from ..runs.record import read_record
from ..session import Session

PASSES = 2
"""Forward passes that are timed; the quickest counts, as nothing makes one quicker than it is."""
BACKWARD = 1.0
"""The way back through frozen layers, in forward passes: gradients of what they read, none of their weights."""
ENOUGH = 10
"""Steps from which on a run's pace says something."""
LOOKED_AT = 200
"""Runs that are searched, the newest first."""
LONGEST = 1e6
"""Seconds of a step that no run has."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, and what that rests on."""

    seconds: float
    basis: str
    """As the end of a sentence."""

    def sentence(self, steps: int) -> str:
        """What ``steps`` will take."""
        return f"time: about {duration(self.seconds * steps)} for {counted(steps, 'step')}, {self.basis}"


def duration(seconds: float) -> str:
    """ "40 seconds", "12 minutes", "3 hours 20 minutes", "2 days 4 hours": as exact as a forecast is."""
    if seconds < 90:
        return counted(max(1, round(seconds)), "second")
    minutes = round(seconds / 60)
    if minutes < 60:
        return counted(minutes, "minute")
    hours, minutes = divmod(round(minutes, -1) if minutes >= 120 else minutes, 60)
    if hours < 24:
        return counted(hours, "hour") + (f" {counted(minutes, 'minute')}" if minutes else "")
    days, hours = divmod(hours, 24)
    return counted(days, "day") + (f" {counted(hours, 'hour')}" if hours else "")


def circumstances(config: TrainingConfig, plan: Plan, model: str, device: str, shows: Controls = NONE) -> dict[str, str]:
    """What a step's time depends on; ``model``: its identity, ``device``: its name; ``shows``: of control pictures."""
    batches = plan.epoch_batches(0)
    pixels = sum(batch.work for batch in batches) / len(batches)
    network = {name: value for name, value in to_dict(config.network).items() if name != "start_from"}
    return {
        "model": model, "device": device, "pixels a step": f"{pixels:.3g}", "precision": config.precision,
        "base weights": config.base_weights, "text encoder": config.text.encoders, "accumulate": str(config.optimizer.accumulate),
        "optimizer": config.optimizer.name, "network": json.dumps(network),
        "less memory": f"{config.gradient_checkpointing} {config.offload_activations} {config.offload_blocks}",
        "faster": f"{config.compile} {config.speed}",
        "preservation": f"{config.loss.preservation} {config.loss.held_at is not None}",
        **({"slider": slider} if (slider := _slider(plan)) else {}),
        **({"held outside masks": f"{_masked(plan):.2g}"} if config.loss.mask_preservation else {}),
        **({"pixels beside them": f"{_beside(plan, shows) / len(batches):.2g}"} if shows.shown else {}),
    }  # fmt: skip


def _slider(plan: Plan) -> str:
    """From what a slider is learnt, the slower of several; empty where none is."""
    found = {subset.config.slider.source for subset in plan.dataset.subsets if subset.config.slider}
    return "prompts" if "prompts" in found else next(iter(found), "")


def _masked(plan: Plan) -> float:
    """Share of an epoch's pictures, by their pixels, in whose batch some picture has a mask."""
    found = {True: 0, False: 0}
    for batch in plan.epoch_batches(0):
        samples = plan.dataset.subsets[batch.subset].samples
        has_masks = any(samples[i].mask is not None for i in batch.samples)
        found[has_masks] += batch.work
    return found[True] / sum(found.values())


def _beside(plan: Plan, shows: Controls) -> int:
    """Pixels of the control pictures of an epoch."""
    total = 0
    for batch in plan.epoch_batches(0):
        subset = plan.dataset.subsets[batch.subset]
        for sample in (subset.samples[i] for i in batch.samples if not subset.ready):
            total += shows.pixels(sample, view(sample, subset.config, batch.size))
    return total


def kept(seconds: float, steps: int, found: Mapping[str, str]) -> dict[str, Any] | None:
    """What a run notes of its pace; None if it has trained too few steps."""
    if steps < ENOUGH or not 0 < seconds < LONGEST:
        return None
    return {"seconds": seconds, "steps": steps, "circumstances": dict(found)}


def earlier(runs: Path, wanted: Mapping[str, str]) -> StepTime | None:
    """The pace of the longest of the newest runs in the same circumstances, in which what comes before steps weighs least."""
    try:
        folders = sorted((e for e in os.scandir(runs) if e.is_dir(follow_symlinks=False)), key=_changed, reverse=True)
    except OSError:
        return None
    steps, best = 0, None
    for folder in folders[:LOOKED_AT]:
        try:
            found = read_record(Path(folder.path)).values.get("pace")
        except (AtelierError, FileNotFoundError):
            continue
        if not isinstance(found, dict) or found.get("circumstances") != wanted:
            continue
        seconds, count = found.get("seconds"), found.get("steps")
        if not isinstance(seconds, float) or not isinstance(count, int) or not 0 < seconds < LONGEST:  # NaN is none of these
            continue
        if count > steps:
            steps = count
            best = StepTime(seconds, f"as fast as {folder.name} was on this device with all that it saved and drew")
    return best


def _changed(folder: os.DirEntry[str]) -> float:
    try:
        return os.stat(os.path.join(folder.path, RUN_FILE)).st_mtime
    except OSError:
        return 0.0


def expected(runs: Path, wanted: Mapping[str, str], session: Session) -> StepTime | None:
    """By an earlier run if there is one, else by the passes that were timed; None without either."""
    found = earlier(runs, wanted)
    if found is None and session.pass_seconds is not None:
        batches = session.plan.epoch_batches(0)
        timed = session.plan.largest_batch()  # the timed picture is one of these
        largest = timed.work // len(timed.samples)
        pictures = sum(batch.work for batch in batches) / (largest * len(batches))
        masked = _masked(session.plan) if session.config.loss.mask_preservation else 0.0
        found = from_passes(session.pass_seconds, session.thrift, session.config, pictures, masked, _slider(session.plan))
    return found


def from_passes(
    seconds: float, thrift: Thrift, config: TrainingConfig, pictures: float, masked: float = 0.0, slider: str = ""
) -> StepTime:
    """The pace by a forward pass of one picture that took ``seconds``; ``pictures``: such ones in a batch, on average;
    ``masked``: the share of them beside which the model answers as it was; ``slider``: from what one is learnt."""
    again = len(thrift.recomputed) / thrift.blocks if thrift.blocks else 0.0
    passes = 1 + BACKWARD + again
    if config.loss.preservation and config.loss.held_at is not None:
        passes += 1 + passes  # of the model as it was, and of the one that is trained
    passes += masked
    if slider:  # two directions, and for prompts three answers of the model as it was
        passes = 2 * passes + (3 if slider == "prompts" else 0)
    guess = "a guess from a timed pass of one picture, without saves, samples and the first step's preparations"
    return StepTime(seconds * passes * pictures, guess)
