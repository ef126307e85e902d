"""Aspect-ratio buckets: which picture size goes to which training size, and where it is cropped. Pure functions.

The rules are those of the established trainers: bucket sides are multiples of a step, no bucket's area is above
resolution^2, a picture goes to the bucket whose aspect ratio is nearest, is scaled until it covers the bucket, and the
overflow is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ..config import Crop
from ..errors import AtelierError

Size = tuple[int, int]


@lru_cache(maxsize=256)
def bucket_sizes(resolution: int, step: int, minimum: int | None = None, maximum: int | None = None) -> tuple[Size, ...]:
    """All bucket sizes (width, height) in pixels, ascending.

    For every width w: height = the largest multiple of ``step`` with w * height <= resolution^2, at most ``maximum``;
    kept if it is at least ``minimum``, and its transpose with it; plus the square. Defaults: ``minimum`` is 256, or half
    the resolution if that is less, floored to the step and at least one step; ``maximum`` is twice the resolution (a
    fixed 1024 would take area from long pictures at resolution 1024).
    """
    if step < 1 or resolution < step or resolution % step:
        raise AtelierError(f"resolution: {resolution} is not a multiple of the bucket step {step}.")
    low = min(256, resolution // 2) if minimum is None else minimum
    low = max(step, low // step * step)
    high = (2 * resolution if maximum is None else maximum) // step * step
    sizes = {(resolution, resolution)}
    for width in range(low, high + 1, step):
        height = min(high, resolution * resolution // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def aspect_error(size: Size, bucket: Size) -> float:
    """|ln(aspect / bucket aspect)|: the same for a picture and for its transpose, 0 when nothing has to be cut."""
    return abs(math.log(size[0] * bucket[1] / (size[1] * bucket[0])))


def assign(width: int, height: int, sizes: tuple[Size, ...]) -> Size:
    """The bucket of a picture: smallest aspect error; among equals the largest area, then the narrower one."""
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has no aspect ratio")
    return min(sizes, key=lambda size: (round(aspect_error((width, height), size), 12), -size[0] * size[1], size))


def own_bucket(width: int, height: int, resolution: int, step: int) -> Size:
    """The largest bucket for which a picture need not be enlarged, with at most ``resolution``^2 pixels.

    As kohya's trainer has it under ``bucket_no_upscale``: the picture is made smaller where it is above that area, never larger,
    and its sides are cut to multiples of ``step``. A side below one step is enlarged to it all the same.
    """
    scale = min(1.0, resolution / math.sqrt(width * height))
    return tuple(max(step, int(side * scale + 1e-9) // step * step) for side in (width, height))  # type: ignore[return-value]


@dataclass(frozen=True)
class Placement:
    """How a picture is laid into its bucket."""

    scaled: Size
    """(width, height) of the whole picture after scaling, in pixels."""
    left: int
    top: int
    """First column and row of the scaled picture that are kept."""


def crop_box(width: int, height: int, target: Size, crop: Crop = "center", draw: tuple[float, float] = (0.5, 0.5)) -> Placement:
    """Scale and cut that turn a picture of width x height pixels into ``target`` (width, height).

    ``center`` and ``random`` scale until the target is covered and keep the aspect ratio to within a pixel; ``random``
    takes the place from ``draw``, two numbers in [0, 1). ``focus`` puts the point ``draw``, in shares of the picture's sides,
    as near to the middle as the picture allows. ``none`` scales each side on its own and cuts nothing. ``head`` is as ``center``,
    for pictures without one; ``head_box`` is for the others.
    """
    if crop == "none":
        return Placement(target, 0, 0)
    scale = max(target[0] / width, target[1] / height)
    scaled = (max(target[0], round(width * scale)), max(target[1], round(height * scale)))
    free = (scaled[0] - target[0], scaled[1] - target[1])
    if crop in ("center", "head"):
        return Placement(scaled, free[0] // 2, free[1] // 2)
    if crop == "focus":
        left, top = (min(f, max(0, round(d * s - t / 2))) for d, s, t, f in zip(draw, scaled, target, free, strict=True))
        return Placement(scaled, left, top)
    return Placement(scaled, min(free[0], int(draw[0] * (free[0] + 1))), min(free[1], int(draw[1] * (free[1] + 1))))


def head_box(width: int, height: int, target: Size, window: tuple[float, float, float]) -> Placement:
    """Scale and cut that turn the square (left, top, side) of a picture, in its pixels, into ``target``, which is square, too."""
    left, top, side = window
    scale = target[0] / side
    scaled = (max(target[0], round(width * scale)), max(target[1], round(height * scale)))
    x, y = (min(round(at * scale), s - t) for at, s, t in zip((left, top), scaled, target, strict=True))
    return Placement(scaled, x, y)
