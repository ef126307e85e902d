"""Learning-rate curve before the run: numbers and a sentence."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import OptimizerConfig
from ..errors import counted
from . import schedules


def curve(config: OptimizerConfig, total: int, points: int = 200) -> list[tuple[int, float]]:
    """(0-based step, rate) for drawing: about ``points`` of ``total`` steps evenly, the first and last, and every corner."""
    last, count = total - 1, min(total, max(2, points))
    even = {round(i * last / max(1, count - 1)) for i in range(count)}
    corners = [s for s in _corners(config, total) if 0 <= s < total]
    steps = sorted(even | set(corners[:points]))
    return [(step, config.peak * schedules.factor(config, step, total)) for step in steps]


def _corners(config: OptimizerConfig, total: int) -> Iterator[int]:
    """The steps where the curve bends: the end of warmup, and both sides of every restart."""
    warmup = schedules.warmup_steps(config, total)
    yield from (warmup - 1, warmup)
    if config.schedule not in ("cosine with restarts", "annealing"):
        return
    for cycle in range(1, config.cycles + 1):
        if config.schedule == "annealing" and config.cycle_steps:
            start = warmup + cycle * config.cycle_steps
        else:
            start = warmup + -(-cycle * (total - warmup) // config.cycles)
        yield from (start - 1, start)


def summary(config: OptimizerConfig, total: int) -> str:
    """One line: the schedule's name, where the rate starts, peaks and ends."""
    if config.own_rate:
        return "Adafactor sets its own rate; learning rate and schedule are not used"
    rates = curve(config, total)
    peak_step, peak = max(rates, key=lambda point: point[1])
    line = f"{config.schedule}: {rate_text(rates[0][1])}"
    if peak_step > 0:
        line += f" → {rate_text(peak)} at step {peak_step + 1}"
    if len(rates) > 1 and rates[-1][1] != peak:
        line += f" → {rate_text(rates[-1][1])} at step {total}"
    if config.schedule in ("cosine with restarts", "annealing") and config.cycles > 1:
        line += f", {config.cycles} cycles"
        if config.schedule == "annealing" and config.cycle_steps:
            line += f" of {counted(config.cycle_steps, 'step')}"
    return line + (f", times the rate that {config.name} estimates" if config.adaptive else "")


def rate_text(rate: float) -> str:
    """``6e-4``, ``0.05``, ``1``: at most three digits that count."""
    if rate == 0 or rate >= 0.01:
        return f"{rate:.3g}"
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
