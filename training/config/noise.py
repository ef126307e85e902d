"""Settings of the objective: noise levels, noise, and losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .refusal import check_kinds, choice, refuse

Levels = Literal["auto", "uniform", "logit-normal", "shifted", "sigmoid"]
LossKind = Literal["mse", "huber", "smooth-l1"]
HuberSchedule = Literal["snr", "constant"]
LevelDraw = Literal["random", "stratified"]
Weighting = Literal["none", "min-SNR", "debiased", "sigma-sqrt", "cosmap"]


@dataclass(frozen=True)
class NoiseConfig:
    """At which noise levels the model is asked, and what the noise is."""

    levels: Levels = "auto"
    """``auto`` takes what suits the model: uniform for eps and v, for flow what its family is trained with (``families``)."""
    logit_mean: float = 0.0
    """``logit-normal``: mean of the logit; below 0 asks for details more often, above 0 for composition."""
    logit_std: float = 1.0
    """``logit-normal``: standard deviation of the logit."""
    sigmoid_scale: float = 1.0
    """``sigmoid`` and ``shifted``: the levels are sigmoid(scale x normal number); larger spreads them to both ends."""
    shift: float = 0.0
    """``shifted``: factor of the shift towards noise; 0 takes the family's own, 3 for one that has none."""
    lowest: float = 0.0
    """Start of the range that is asked for, as a share of the schedule: 0 is no noise."""
    highest: float = 1.0
    """End of that range: 1 is nothing but noise."""
    offset: float = 0.0
    """Noise offset: strength of one more random number for a whole channel, which lets brightness be learnt; 0 is off."""
    offset_each_channel: bool = True
    """Off: one number moves all channels of a picture alike."""
    offset_random: bool = False
    """On: every picture gets a strength of its own between 0 and ``offset``."""
    pyramid_iterations: int = 0
    """Pyramid (multires) noise: layers of coarser noise that are added; 0 is off, 6 is usual."""
    pyramid_discount: float = 0.3
    """Each coarser layer counts this much of the one before."""
    perturbation: float = 0.0
    """Input perturbation: share of noise that the model sees but is not asked for; 0 is off, 0.1 is usual."""
    level_draw: LevelDraw = "random"
    """``stratified`` covers the distribution of the levels evenly, within a batch and from step to step, instead of by chance."""

    def __post_init__(self) -> None:
        check_kinds(self)
        choice("noise levels", self.levels, Levels)
        choice("level draw", self.level_draw, LevelDraw)
        refuse(not -10 <= self.logit_mean <= 10, f"logit mean: {self.logit_mean} is outside -10 to 10; 0 is usual.")
        refuse(not 0.01 <= self.logit_std <= 10, f"logit std: {self.logit_std} is outside 0.01 to 10; 1 is usual.")
        refuse(not 0.01 <= self.sigmoid_scale <= 10, f"sigmoid scale: {self.sigmoid_scale} is outside 0.01 to 10; 1 is usual.")
        refuse(
            self.shift != 0 and not 0.01 <= self.shift <= 100,
            f"shift: {self.shift} is outside 0.01 to 100; 0 takes what suits the model.",
        )
        refuse(
            not 0 <= self.lowest < self.highest <= 1,
            f"noise range: {self.lowest} to {self.highest} is no range within 0 to 1; everything is 0 to 1.",
        )
        refuse(not 0 <= self.offset <= 1, f"noise offset: {self.offset} is outside 0 to 1; 0.1 is usual.")
        refuse(not 0 <= self.pyramid_iterations <= 16, f"pyramid noise: {self.pyramid_iterations} layers is outside 0 to 16.")
        refuse(not 0 < self.pyramid_discount < 1, f"pyramid discount: {self.pyramid_discount} must lie between 0 and 1.")
        refuse(not 0 <= self.perturbation <= 1, f"input perturbation: {self.perturbation} is outside 0 to 1; 0.1 is usual.")
        refuse(
            self.offset > 0 and self.pyramid_iterations > 0,
            "noise offset: pyramid noise is on as well, and both do the same. Set one of them to 0.",
        )


BLANK = '""'
"""What stands for an empty prompt where an empty field means something else."""


@dataclass(frozen=True)
class LossConfig:
    """How wrong an answer counts."""

    kind: LossKind = "mse"
    """``huber`` and ``smooth-l1`` forgive single large errors, such as those of a picture that does not fit the others."""
    huber_schedule: HuberSchedule = "snr"
    """``snr``: forgiving only where there is much noise; ``constant``: everywhere alike."""
    huber_threshold: float = 0.1
    """From about this error on, ``huber`` and ``smooth-l1`` grow linearly instead of as the square."""
    weighting: Weighting = "none"
    """How much each noise level counts: ``min-SNR`` and ``debiased`` are for eps and v models, ``sigma-sqrt`` and ``cosmap`` for
    flow models."""
    snr_gamma: float = 5.0
    """``min-SNR``: levels with a higher signal-to-noise ratio than this count less; 5 is the paper's."""
    preservation: float = 0.0
    """Output preservation: how strongly the model is held to what it answered before training; 0 is off, 1 is usual."""
    preservation_prompt: str = ""
    """What it is held at: a class such as ``a woman``; two quotation marks: no prompt at all; empty: the captions of the
    regularisation pictures."""
    mask_preservation: float = 0.0
    """How strongly the model is held, outside the pictures' masks, to what it answered before training; 0 is off, 1 is usual."""

    @property
    def held_at(self) -> str | None:
        """The text at which the model is held; None for the captions of the regularisation pictures."""
        return {"": None, BLANK: ""}.get(self.preservation_prompt.strip(), self.preservation_prompt)

    def __post_init__(self) -> None:
        check_kinds(self)
        choice("loss", self.kind, LossKind)
        choice("huber schedule", self.huber_schedule, HuberSchedule)
        choice("weighting", self.weighting, Weighting)
        refuse(
            not 0.0001 <= self.huber_threshold <= 1,
            f"huber threshold: {self.huber_threshold} is outside 0.0001 to 1; 0.1 is usual.",
        )
        refuse(not 0.01 <= self.snr_gamma <= 1000, f"min-SNR gamma: {self.snr_gamma} is outside 0.01 to 1000; 5 is usual.")
        refuse(not 0 <= self.preservation <= 100, f"output preservation: {self.preservation} is outside 0 to 100; 1 is usual.")
        refuse(
            not 0 <= self.mask_preservation <= 100,
            f"mask preservation: {self.mask_preservation} is outside 0 to 100; 1 is usual.",
        )
