"""Learning-rate schedules as pure functions of the step, so that a resumed run continues the curve exactly."""

from __future__ import annotations

import math

from ..config import OptimizerConfig


def factor(config: OptimizerConfig, step: int, total: int) -> float:
    """The multiple of the peak rate used for ``step`` (0-based) of ``total``.

    Warmup rises linearly and reaches 1 at its end; what follows runs over the remaining steps (progress p from 0 to 1):
    linear 1 - p, cosine (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017).
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    p = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.schedule == "linear":
        return 1 - p
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * p)) / 2
    return 1.0
