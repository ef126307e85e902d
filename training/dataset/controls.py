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
        """What the model is given of a picture that is shown as ``target``: its control pictures, mirrored where it is."""
        if not self.shown:
            return ()
        size = target.size if self.as_large else None
        return tuple((control, whole(control, target.flipped, size)) for control in sample.controls)

    def seen_with(self, sample: Sample, target: View) -> tuple[Shown, ...]:
        """What the text encoder sees of them: the same pictures at their own size."""
        if not self.shown or not self.seen:
            return ()
        return tuple((control, whole(control, target.flipped)) for control in sample.controls)

    def pixels(self, sample: Sample, target: View) -> int:
        """Of what the model is given beside a picture."""
        return sum(shown.size[0] * shown.size[1] for _, shown in self.of(sample, target))


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
