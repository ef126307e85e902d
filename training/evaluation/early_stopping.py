"""Early stopping: whether a run has converged, by the fixed losses of ``validation``, never by the training loss.

The variance criterion is that of Voronov et al., "Is This Loss Informative?" (NeurIPS 2023, arXiv 2302.04841): enough when the
variance of the last values, divided by the variance of all since the start, falls below a threshold. There it looks at single
steps (310 of them); here at epochs, which are few, so a curve that still falls steadily is asked for as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pvariance

from .validation import Validation

WINDOW = 5
"""Last values that are compared with all."""
THRESHOLD = 0.15
"""The paper's threshold of the ratio of variances."""
STILL_FALLING = 0.1
"""Not converged while the slope over the window explains more than this share of the total improvement."""
STANDS_STILL = 1e-5
"""A curve whose values differ by no more than this share of their mean does not move: the rest is rounding."""
PATIENCE = 3
"""Values after the held-out pictures' best one before it counts as the turn."""


@dataclass(frozen=True)
class Verdict:
    """Whether to stop, and which epoch to take."""

    enough: bool
    epoch: int
    """1-based: the epoch to take when it is enough, else the last one that was looked at; 0 before any was."""
    why: str
    """One sentence."""


def judge(history: Sequence[Validation], window: int = WINDOW, threshold: float = THRESHOLD, patience: int = PATIENCE) -> Verdict:
    """The verdict on everything that was measured so far, oldest first.

    Over-fitting comes first: the held-out loss was best at least ``patience`` values ago while that of the training share has
    fallen since. Else the variance criterion, on the held-out loss where there is one.
    """
    if not history:
        return Verdict(False, 0, "Nothing was measured yet.")
    turned = _turn(history, patience)
    if turned is not None:
        return Verdict(
            True,
            turned.epoch,
            f"The held-out pictures were best in epoch {turned.epoch} and got worse since, while the trained ones went on "
            "getting better: it begins to learn them by heart.",
        )
    held = [point.held_out for point in history if point.held_out is not None]
    curve = held if len(held) == len(history) else [point.training for point in history]
    last = history[-1].epoch
    if len(curve) <= window:
        return Verdict(False, last, f"Only {len(curve)} measured so far; it takes {window + 1} for a verdict.")
    if not all(map(math.isfinite, curve)):
        return Verdict(False, last, "A measured loss is no longer a number.")
    if max(curve) - min(curve) <= STANDS_STILL * abs(sum(curve) / len(curve)):
        return Verdict(True, last, "The fixed loss does not move at all: nothing is being learnt.")
    ratio = variance_ratio(curve, window)
    if ratio >= threshold:
        return Verdict(
            False, last, f"The fixed loss still moves: its last {window} values vary {ratio:.2f} times as much as all."
        )
    if -_slope(curve[-window:]) * (window - 1) > STILL_FALLING * (curve[0] - min(curve)):
        return Verdict(False, last, f"The fixed loss still falls steadily over the last {window} values.")
    return Verdict(
        True,
        last,
        f"The fixed loss has settled: the last {window} values vary {ratio:.2f} times as much as all since the start "
        f"(below {threshold:g} is enough).",
    )


def variance_ratio(curve: Sequence[float], window: int) -> float:
    """Variance of the last ``window`` values over that of all of them; 0 for a curve that never moved."""
    whole = pvariance(curve)
    return pvariance(curve[-window:]) / whole if whole > 0 else 0.0


def _turn(history: Sequence[Validation], patience: int) -> Validation | None:
    """The point of the best held-out loss, if that was ``patience`` values ago and the training share has fallen since."""
    if any(point.held_out is None for point in history):
        return None
    place = min(range(len(history)), key=lambda i: (history[i].held_out, i))
    best, last = history[place], history[-1]
    return best if len(history) - 1 - place >= patience and last.training < best.training else None


def _slope(curve: Sequence[float]) -> float:
    """Of the least-squares line through values at 0, 1, 2, ..."""
    middle = (len(curve) - 1) / 2
    mean = sum(curve) / len(curve)
    squares = sum((i - middle) ** 2 for i in range(len(curve)))
    return sum((i - middle) * (value - mean) for i, value in enumerate(curve)) / squares if squares else 0.0
