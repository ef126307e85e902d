"""Control pictures: out of which an edit model is to make a picture, and how they are shown to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .buckets import Size
from .samples import Sample
from .views import View

PIXELS = 1024 * 1024
"""A control picture has its own size up to this area, to which the host's own nodes bring it; a larger one is made smaller."""
STEP = 16
"""Pixels of which its sides are multiples: two cells of a latent, the patch of the networks that read it."""
CELL = 64
"""Pixels of which the sides of fixed shapes are multiples."""
DOUBLES = {(960, 960), (896, 1024), (1024, 896)}
"""Shapes near another one that is larger, which stands for them."""
Shown = tuple[Sample, View]


def _shapes() -> tuple[Size, ...]:
    """All of about a megapixel with sides of 512 to 2048 pixels, (width, height), the flattest first."""
    sides = range(512, 2048 + CELL, CELL)
    every = [(width, height) for height in sides for width in sides if PIXELS * 7 // 8 <= width * height <= PIXELS]
    return tuple(shape for shape in every if shape not in DOUBLES)


SHAPES = _shapes()
"""To one of which JoyImage's node cuts what it shows."""


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
    in_shapes: bool = False
    """Whether they are cut to the nearest of ``SHAPES``, for model and text encoder."""

    def of(self, sample: Sample, target: View) -> tuple[Shown, ...]:
        """What the model is given of a picture that is shown as ``target``: its control pictures, mirrored where it is."""
        if not self.shown:
            return ()
        size = target.size if self.as_large else None
        return tuple((control, self._view(control, target.flipped, size)) for control in sample.controls)

    def seen_with(self, sample: Sample, target: View) -> tuple[Shown, ...]:
        """What the text encoder sees of them: the same pictures at their own size."""
        if not self.shown or not self.seen:
            return ()
        return tuple((control, self._view(control, target.flipped)) for control in sample.controls)

    def _view(self, control: Sample, flipped: bool, size: Size | None = None) -> View:
        return shaped(control, flipped) if self.in_shapes else whole(control, flipped, size)

    def pixels(self, sample: Sample, target: View) -> int:
        """Of what the model is given beside a picture."""
        return sum(shown.size[0] * shown.size[1] for _, shown in self.of(sample, target))


NONE = Controls()


def whole(control: Sample, flipped: bool = False, size: tuple[int, int] | None = None) -> View:
    """All of a control picture, stretched to ``size`` (width, height), or nearly at its own."""
    size = size or whole_size(control.width, control.height)
    return View(control.key, size, (control.width, control.height), (0, 0), size, flipped)


def shaped(control: Sample, flipped: bool = False) -> View:
    """A control picture in the fixed shape that is nearest to its own, of which the middle is kept."""
    original = control.width, control.height
    scaled, box = filled(*original)
    return View(control.key, (box[2] - box[0], box[3] - box[1]), original, box[:2], scaled, flipped)


def filled(width: int, height: int) -> tuple[Size, tuple[int, int, int, int]]:
    """(size to which a picture is scaled, the part that is kept of that) for the fixed shape that is nearest to its own."""
    shape = nearest(width, height)
    factor = max(wanted / side for wanted, side in zip(shape, (width, height), strict=True))
    scaled = max(shape[0], round(width * factor)), max(shape[1], round(height * factor))
    left, top = (scaled[0] - shape[0]) // 2, (scaled[1] - shape[1]) // 2
    return scaled, (left, top, left + shape[0], top + shape[1])


def nearest(width: int, height: int) -> Size:
    """The fixed shape whose proportion is nearest."""
    return min(SHAPES, key=lambda shape: abs(shape[1] / shape[0] - height / width))


def whole_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels at which a control picture of so many is shown."""
    shrunk = min(1.0, math.sqrt(PIXELS / (width * height)))
    across, down = (max(STEP, round(side * shrunk / STEP) * STEP) for side in (width, height))
    return across, down
