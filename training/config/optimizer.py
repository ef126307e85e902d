"""Settings of the optimizer and the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..errors import counted
from . import optimizer_arguments
from .refusal import check_kinds, choice, refuse

OptimizerName = Literal[
    "AdamW", "AdamW8bit", "Lion", "Prodigy", "DAdaptAdam", "DAdaptAdamW", "Adafactor", "AdamWScheduleFree", "CAME", "SGD",
    "Lion8bit", "ProdigyPlusScheduleFree", "Muon",
]  # fmt: skip
ScheduleName = Literal["constant", "linear", "cosine", "cosine with restarts", "annealing", "polynomial"]


@dataclass(frozen=True)
class OptimizerConfig:
    """How the adapter's weights move. A step here is one of the optimizer: ``accumulate`` batches."""

    name: OptimizerName = "AdamW"
    learning_rate: float = 1e-4
    """Peak rate; the schedule multiplies it by a factor between 0 and 1. Both Prodigys and D-adaptation take 1."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm; 0 switches clipping off."""
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 0."""
    warmup_share: float = 0.0
    """The same as a share of all steps."""
    min_rate: float = 0.0
    """Where the schedule ends instead of at 0, as a rate; a constant rate has no use for it."""
    min_share: float = 0.0
    """The same as a share of the peak rate."""
    cycles: int = 1
    """Falls of the rate, for cosine with restarts and annealing."""
    cycle_steps: int = 0
    """Length of one cycle of annealing, which stays at the minimum after the last; 0 spreads the cycles over the run."""
    power: float = 1.0
    """Exponent of polynomial; 1 is a line."""
    optimizer_args: str = ""
    """More settings of the optimizer as ``key=value``; ``lr`` and ``weight_decay`` win over the fields above."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step of the optimizer."""

    def __post_init__(self) -> None:
        check_kinds(self)
        choice("optimizer", self.name, OptimizerName)
        choice("schedule", self.schedule, ScheduleName)
        for key in ("lr", "weight_decay"):
            value = self.args.get(key, 0.0)
            refuse(
                isinstance(value, bool) or not isinstance(value, (int, float)),
                f"optimizer arguments: {key} has to be a number, not {value}.",
            )
        refuse(
            not 0 < self.peak <= 10,
            f"learning rate: {self.peak:g} must be above 0 and at most 10 (1e-4 is usual for AdamW).",
        )
        refuse(not 0 <= self.decay < 1, f"weight decay: {self.decay:g} is outside 0 to 1.")
        refuse(
            not 0 <= self.max_grad_norm < math.inf,
            f"gradient clipping: {self.max_grad_norm} is no number from 0 on; 0 switches it off.",
        )
        refuse(not 1 <= self.accumulate <= 10_000, f"accumulate: {self.accumulate} batches are outside 1 to 10000.")
        self._check_schedule()
        self._check_optimizer()

    def _check_schedule(self) -> None:
        refuse(self.warmup_steps < 0, f"warmup: {self.warmup_steps} steps is below 0.")
        refuse(not 0 <= self.warmup_share < 1, f"warmup: a share of {self.warmup_share} is outside 0 to 0.99.")
        refuse(
            self.warmup_steps > 0 and self.warmup_share > 0,
            f"warmup: {counted(self.warmup_steps, 'step')} and a share of {self.warmup_share} contradict each "
            "other; set one of them to 0.",
        )
        refuse(not 0 <= self.min_rate < math.inf, f"min rate: {self.min_rate} is no number from 0 on.")
        refuse(not 0 <= self.min_share <= 1, f"min rate: a share of {self.min_share} is outside 0 to 1.")
        refuse(
            self.min_rate > 0 and self.min_share > 0,
            f"min rate: {self.min_rate} and a share of {self.min_share} contradict each other; set one of them to 0.",
        )
        refuse(
            self.schedule != "constant" and self.min_rate > self.peak,
            f"min rate: {self.min_rate} lies above the learning rate {self.peak}, from which the schedule falls.",
        )
        refuse(not 1 <= self.cycles <= 10_000, f"cycles: {self.cycles} is outside 1 to 10000.")
        refuse(not 0 <= self.cycle_steps <= 10_000_000, f"cycle steps: {self.cycle_steps} is outside 0 to 10000000.")
        refuse(not 0 < self.power <= 10, f"power: {self.power} is outside 0.01 to 10.")

    def _check_optimizer(self) -> None:
        fixed = self.schedule == "constant" and not self.warms_up
        refuse(
            self.adaptive and self.peak < 0.01,
            f"learning rate: {self.name} finds the rate itself and multiplies it by this one, so {self.peak} would learn "
            "nothing. Set it to 1.",
        )
        refuse(
            self.name == "DAdaptAdamW" and not self.args.get("decouple", True),
            "optimizer arguments: DAdaptAdamW is DAdaptAdam with decouple=True; for decouple=False choose DAdaptAdam.",
        )
        refuse(
            self.averages and self.schedule != "constant",
            f"schedule: {self.name} averages the weights instead of lowering the rate; choose constant.",
        )
        relative, warm = self.args.get("relative_step", False), self.args.get("warmup_init", False)
        refuse(
            self.name == "Adafactor" and bool(warm) and not relative,
            "optimizer arguments: warmup_init=True of Adafactor needs relative_step=True.",
        )
        refuse(
            self.own_rate and not fixed,
            "schedule: with relative_step=True Adafactor sets its own rate; choose constant, no warmup.",
        )
        refuse(
            self.own_rate and "lr" in self.args,
            "optimizer arguments: with relative_step=True Adafactor sets its own rate; remove lr, or say relative_step=False.",
        )

    @cached_property
    def args(self) -> dict[str, optimizer_arguments.Value]:
        """``optimizer_args`` as values."""
        return optimizer_arguments.parse(self.optimizer_args)

    @property
    def peak(self) -> float:
        """The rate at the schedule's factor 1: ``lr`` of the optimizer arguments, or the learning rate."""
        return float(self.args.get("lr", self.learning_rate))  # type: ignore[arg-type]

    @property
    def decay(self) -> float:
        """``weight_decay`` of the optimizer arguments, or the field of that name."""
        return float(self.args.get("weight_decay", self.weight_decay))  # type: ignore[arg-type]

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer estimates a rate that ``peak`` only multiplies."""
        return self.name in ("Prodigy", "DAdaptAdam", "DAdaptAdamW", "ProdigyPlusScheduleFree")

    @property
    def averages(self) -> bool:
        """Whether the optimizer averages its weights, and has no use for a schedule."""
        plus = self.name == "ProdigyPlusScheduleFree" and bool(self.args.get("use_schedulefree", True))
        return plus or self.name == "AdamWScheduleFree"

    @property
    def eight_bit(self) -> bool:
        """Whether what the optimizer keeps is held in eight bits."""
        return self.name in ("AdamW8bit", "Lion8bit")

    @property
    def clips_itself(self) -> bool:
        """Whether the optimizer limits its updates by itself, and clipped gradients would be in its way."""
        return self.own_rate or self.name == "ProdigyPlusScheduleFree"

    @property
    def warms_up(self) -> bool:
        """Whether the rate rises at first."""
        return self.warmup_steps > 0 or self.warmup_share > 0

    @property
    def own_rate(self) -> bool:
        """Whether the optimizer takes no rate from outside."""
        return self.name == "Adafactor" and bool(self.args.get("relative_step", False))

    @property
    def clip_norm(self) -> float:
        """The norm that gradients are scaled down to; 0 for what limits its updates instead."""
        return 0.0 if self.clips_itself else self.max_grad_norm

    def updates(self, batches: int) -> int:
        """Steps of the optimizer in ``batches`` batches; what is left over at the end makes one more."""
        return -(-batches // self.accumulate)
