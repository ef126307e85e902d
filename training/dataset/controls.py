"""Control pictures: out of which an edit model is to make a picture, and how they are shown to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .samples import Sample
from .views import View

PIXELS = 1024 * 1024
"""A control picture has its own size up to this area, to which the host's own nodes bring it; a larger one is made smaller."""
STEP = 16
"""Pixels of which its sides are multiples: two cells of a latent, the patch of the networks that read it."""
Shown = tuple[Sample, View]


@dataclass(frozen=True)
class Controls:
    """How a run shows control pictures."""

    shown: bool = False
    """Whether the model is given their latents."""
    seen: bool = False
    """Whether the text encoder sees them beside the caption."""
    method: str = ""
    """How the network tells them from its own picture; empty leaves it to the host."""
    as_large: bool = False
    """Whether they are brought to the size of the picture beside which they are shown."""

    def of(self, sample: Sample, target: View) -> tuple[Shown, ...]:
        """The control pictures of a picture that is shown as ``target``: mirrored where it is."""
        if not self.shown:
            return ()
        return tuple(
            (control, whole(control, target.flipped, target.size if self.as_large else None)) for control in sample.controls
        )


NONE = Controls()


def whole(control: Sample, flipped: bool = False, size: tuple[int, int] | None = None) -> View:
    """All of a control picture, stretched to ``size`` (width, height), or nearly at its own."""
    size = size or whole_size(control.width, control.height)
    return View(control.key, size, (control.width, control.height), (0, 0), size, flipped)


def whole_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels at which a control picture of so many is shown."""
    shrunk = min(1.0, math.sqrt(PIXELS / (width * height)))
    across, down = (max(STEP, round(side * shrunk / STEP) * STEP) for side in (width, height))
    return across, down
