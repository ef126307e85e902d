"""Sampler settings, as one value for previews, grids and regularisation pictures."""

from __future__ import annotations

from dataclasses import dataclass

from .refusal import check_kinds


@dataclass(frozen=True)
class SamplerSettings:
    """What the host's KSampler is set to, but for the seed."""

    sampler: str
    scheduler: str
    steps: int
    cfg: float


@dataclass(frozen=True)
class Sampling:
    """The person's own sampler settings; every cell uses the same ones."""

    negative: str
    sampler: str
    scheduler: str
    steps: int
    cfg: float
    width: int
    height: int
    seed: int

    def __post_init__(self) -> None:
        check_kinds(self)

    @property
    def settings(self) -> SamplerSettings:
        return SamplerSettings(self.sampler, self.scheduler, self.steps, self.cfg)
