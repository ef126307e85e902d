"""Learning-rate schedules as pure functions of the step, so that a resumed run continues the curve exactly."""

from __future__ import annotations

import math

from ..config import OptimizerConfig
from ..errors import AtelierError, counted


def factor(config: OptimizerConfig, step: int, total: int) -> float:
    """The multiple of the peak rate used for ``step`` (0-based) of ``total`` steps of the optimizer, between 0 and 1.

    Warmup rises linearly and reaches 1 at its end; what follows falls from 1 to the minimum m over the remaining steps:
    m + (1 - m) * shape.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    low = lowest(config)
    return low + (1 - low) * _shape(config, step - warmup, max(1, total - warmup))


def _shape(config: OptimizerConfig, step: int, span: int) -> float:
    """1 at step 0 of ``span``, falling towards 0 at its end (p is the progress from 0 to 1).

    linear 1 - p, polynomial (1 - p)^power, cosine (1 + cos(pi p)) / 2; with restarts the cosine of every cycle's own progress
    (SGDR, Loshchilov & Hutter 2017), and 0 once the cycles are over. Cycles are counted in whole numbers: a rounded progress
    would put a restart at the wrong end of its jump.
    """
    if config.schedule == "annealing" and config.cycle_steps:
        done, part = divmod(step, config.cycle_steps)
        p = part / config.cycle_steps if done < config.cycles else 1.0
    elif config.schedule in ("cosine with restarts", "annealing"):
        done, part = divmod(step * config.cycles, span)
        p = part / span if done < config.cycles else 1.0
    else:
        p = min(1.0, step / span)
    if config.schedule == "linear":
        return 1 - p
    if config.schedule == "polynomial":
        left: float = (1 - p) ** config.power
        return left
    return (1 + math.cos(math.pi * p)) / 2


def warmup_steps(config: OptimizerConfig, total: int) -> int:
    """Steps of warmup; a share of the run always leaves one for the rate itself."""
    return config.warmup_steps or min(round(config.warmup_share * total), total - 1)


def lowest(config: OptimizerConfig) -> float:
    """The schedule's minimum as a share of the peak rate; parts with rates of their own keep their ratio to it."""
    return config.min_rate / config.peak if config.min_rate else config.min_share


def check(config: OptimizerConfig, total: int) -> None:
    """Refuses a schedule that does not fit into ``total`` steps of the optimizer."""
    warmup = warmup_steps(config, total)
    if warmup and warmup >= total:
        raise AtelierError(
            f"warmup: {counted(warmup, 'step')}, but the run has only {total}; the learning rate would never be "
            "reached. Use fewer."
        )
    if config.schedule not in ("cosine with restarts", "annealing"):
        return
    if not config.cycle_steps and config.cycles > total - warmup:
        raise AtelierError(f"cycles: {config.cycles} do not fit into {counted(total - warmup, 'step')}; use fewer.")
    rest = total - warmup - config.cycles * config.cycle_steps
    if config.schedule == "annealing" and config.cycle_steps and rest > 0 and lowest(config) == 0:
        raise AtelierError(
            f"min rate: annealing stays at its minimum for the last {counted(rest, 'step')} of the run, and at "
            "0 would learn nothing. "
            "Set a min rate, or more cycles, or longer ones."
        )


def same_so_far(config: OptimizerConfig, before: int, now: int, done: int) -> bool:
    """Whether the first ``done`` steps of the optimizer have the same rates in a run of ``before`` and in one of ``now`` steps.

    That a run can be made longer as if it had been so long from the beginning.
    """
    return all(factor(config, step, before) == factor(config, step, now) for step in range(done))
