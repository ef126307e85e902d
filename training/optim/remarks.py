"""What a person may not expect of the optimizer and the schedule, in sentences: what is not used, and what does nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from ..config import OptimizerConfig, TrainingConfig
from ..errors import counted
from . import optimizers, schedules

USUAL_MOST = {"Lion": 3e-3, "Lion8bit": 3e-3, "SGD": 10.0}
"""The rate from which on a person is told that others are usual."""
USUAL_LEAST = {"Lion": 1e-7, "Lion8bit": 1e-7, "SGD": 1e-5}
"""The rate below which a person is told that next to nothing will be learnt."""
RELATIVE_MOST = 0.3
"""The same where the rate is a share of the weights' own size, of which a hundredth a step is usual."""
NEXT_TO_NOTHING = 1e-3
"""Share of the peak rate below which a step changes nearly nothing."""


def remarks(
    config: OptimizerConfig, total: int | None = None, epochs: int | None = None, rates: Sequence[float] = ()
) -> list[str]:
    """Of the recipe, and of a run of ``total`` batches in ``epochs`` if its length is known; ``rates``: as for
    ``optimizers.notes``, whose sentences come first."""
    out = [*optimizers.notes(config, rates), *_rate(config), *_unused(config)]
    if total is not None:
        out += _in_run(config, total, epochs)
    return out


def _rate(config: OptimizerConfig) -> Iterator[str]:
    if config.own_rate:
        return
    if config.adaptive and not 0.3 <= config.peak <= 3:
        yield f"learning rate: {config.name} multiplies the rate that it finds by {config.peak:g}; 1 is usual."
    if not config.adaptive and config.peak >= _most(config):
        mend = (
            "1e-5 is usual for Lion"
            if config.name.startswith("Lion")
            else "1e-2 is usual"
            if _is_relative(config)
            else "1e-4 is usual"
        )
        yield (
            f"learning rate: {config.peak:g} is far too high for {config.name} in most runs; {mend}, and 1 belongs to Prodigy "
            "and D-adaptation."
        )

    least = USUAL_LEAST.get(config.name, 1e-6)
    if not config.adaptive and config.peak < least:
        yield f"learning rate: at {config.peak:g} {config.name} learns next to nothing in most runs; 1e-4 is usual for AdamW."


def _is_relative(config: OptimizerConfig) -> bool:
    return config.name == "Adafactor" and bool(config.args.get("scale_parameter"))


def _most(config: OptimizerConfig) -> float:
    return RELATIVE_MOST if _is_relative(config) else USUAL_MOST.get(config.name, 0.01)


def of_rates(config: TrainingConfig) -> list[str]:
    """Rates with which the chosen optimizer is not used, that of the text encoder among them."""
    found, optimizer, own = list(_rate(config.optimizer)), config.optimizer, config.text.learning_rate
    if config.text.encoders == "none" or own == 0 or optimizer.own_rate:
        return found
    if optimizer.adaptive and not 0.01 <= own / optimizer.peak <= 10:
        found.append(
            f"text_encoder_rate: {optimizer.name} finds the rate itself, and {own:g} beside {optimizer.peak:g} is only a ratio. "
            "Set it to 0.1 to 1 as well."
        )
    elif not optimizer.adaptive and own >= _most(optimizer):
        found.append(f"text_encoder_rate: {own:g} is far too high for {optimizer.name} in most runs; 5e-5 is usual.")
    return found


def _unused(config: OptimizerConfig) -> Iterator[str]:
    """Settings that the chosen schedule or optimizer has no use for."""
    schedule, cyclic = config.schedule, config.schedule in ("cosine with restarts", "annealing")
    if schedule == "constant":
        for name, value in (("min_rate", config.min_rate), ("min_share", config.min_share)):
            if value:
                yield f"{name}: not used, since a constant rate does not fall."
    if config.cycles > 1 and not cyclic:
        yield f"cycles: not used by {schedule}; they are for cosine with restarts and annealing."
    if config.cycle_steps and schedule != "annealing":
        yield f"cycle_steps: not used by {schedule}; they are for annealing."
    if config.power != 1 and schedule != "polynomial":
        yield f"power: not used by {schedule}; it is for polynomial."
    if schedule == "polynomial" and config.power == 1:
        yield "power: at 1 the polynomial schedule is linear."
    if config.cycles == 1 and schedule == "cosine with restarts":
        yield "cycles: with 1, cosine with restarts never restarts and is cosine; set cycles to 2 or more."
    if config.cycles == 1 and schedule == "annealing" and not config.cycle_steps:
        yield "cycles: with 1 and no cycle_steps, annealing is cosine; set cycles to 2 or more, or cycle_steps."
    if cyclic and config.cycles > 1 and config.name in ("Prodigy", "ProdigyPlusScheduleFree"):
        yield "schedule: the authors of Prodigy advise against restarts, after which its estimate may be too high."
    if schedule != "constant" and schedules.lowest(config) == 1:
        yield f"min rate: it is the learning rate, so that {schedule} never falls."
    if config.decay and config.name in ("SGD", "DAdaptAdam") and not config.args.get("decouple", False):
        yield f"weight decay: {config.name} adds it to the gradient (L2), where AdamW takes it off the weights."
    if config.name == "SGD" and config.args.get("momentum", 0.9) == 0 and config.args.get("dampening"):
        yield "optimizer arguments: dampening is not used without momentum."


def _in_run(config: OptimizerConfig, total: int, epochs: int | None) -> Iterator[str]:
    """What only shows where the length is known."""
    updates = config.updates(total)
    warmup = schedules.warmup_steps(config, updates)
    if config.accumulate > total:
        yield f"accumulate: the run has only {counted(total, 'batch', 'batches')}, which make a single step of the optimizer."
    elif config.accumulate > 1 and warmup:
        yield (
            f"warmup: {counted(warmup, 'step')} of the optimizer are {warmup * config.accumulate} of the "
            f"{counted(total, 'batch', 'batches')}."
        )
    if config.own_rate:
        return
    cyclic = config.cycles > 1 and config.schedule in ("cosine with restarts", "annealing")
    if cyclic and not config.cycle_steps and 2 * config.cycles > updates - warmup:
        yield (
            f"cycles: {config.cycles} in {counted(updates - warmup, 'step')} have a step or two each, so that "
            "the rate hardly falls."
        )
    elif cyclic and not config.cycle_steps and epochs is not None and config.cycles > epochs:
        yield (
            f"cycles: {config.cycles} in {counted(epochs, 'epoch')}, so that the rate stands anywhere between "
            "its peak and its minimum "
            "where an epoch's file is saved."
        )
    if cyclic and config.cycle_steps and config.cycles * config.cycle_steps > updates - warmup:
        done = (updates - warmup) / config.cycle_steps
        yield f"cycles: the run ends after {done:.3g} of the {config.cycles} cycles of {counted(config.cycle_steps, 'step')}."

    def fallen(step: int) -> float:
        return -schedules.factor(config, step, updates)

    # A shape falls all the way, so the first such step is found by halving; cycles rise again and are left alone.
    idle = 0 if cyclic else updates - bisect_right(range(updates), -NEXT_TO_NOTHING, warmup, key=fallen)
    if idle > max(1, 0.05 * updates):
        yield (
            f"schedule: the last {idle} of {updates} steps have less than a thousandth of the learning rate and learn next to "
            "nothing."
        )
