"""Sampler settings, as one value for previews, grids and regularisation pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .refusal import check_kinds, refuse

LATER = ("frames", "shown_frame")


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
    frames: int = 1
    """Of a film; 1 is a picture."""
    shown_frame: int = 1
    """Which of them, from 1, stands where nothing moves."""

    def __post_init__(self) -> None:
        check_kinds(self)
        refuse(not 1 <= self.shown_frame <= self.frames, f"shown frame: there is no frame {self.shown_frame} of {self.frames}.")

    def as_dict(self) -> dict[str, Any]:
        """By name; what came later is left out where it is as it was before it came, so that names made from this stay."""
        return {name: value for name, value in asdict(self).items() if self.frames > 1 or name not in LATER}

    @property
    def settings(self) -> SamplerSettings:
        return SamplerSettings(self.sampler, self.scheduler, self.steps, self.cfg)
