"""Views of a sample: crop, pixels and mask for its bucket, and the key of its cached latent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..config import SubsetConfig
from ..errors import AtelierError
from ..seeding import crop_draw
from .augment import FIXED, mirrored
from .buckets import Size, crop_box, head_box
from .clips import frames_of
from .heads import window
from .images import cut, open_picture, to_unit
from .masks import open_mask
from .samples import Sample, Stretch

LOTS = 24
"""Sightings at one place after which both ways of mirroring have come up, but for a chance of less than 1 in 10^6."""


@dataclass(frozen=True)
class View:
    """One way of looking at a picture: everything that decides its pixels, and SDXL's size conditioning."""

    sample_key: str
    """SHA-256 (hex) of the picture's file."""
    size: Size
    """(width, height) in pixels that the model sees."""
    original: Size
    """(width, height) of the picture after EXIF rotation, before scaling."""
    crop: tuple[int, int]
    """(left, top) of the kept part in the scaled picture."""
    scaled: Size
    """(width, height) of the whole picture after scaling."""
    flipped: bool = False
    """Mirrored left to right, after the cut."""
    side: int = 0
    """Pixels of the picture's square that was cut out as a picture of its own; 0 for none."""
    stretch: Stretch | None = None
    """Which frames of the file; ``sample_key`` stands for them as well."""

    @property
    def frames(self) -> int:
        """Frames of the clip; 1 for a picture."""
        return len(self.stretch.frames) if self.stretch else 1

    @property
    def described(self) -> tuple[Size, tuple[int, int]]:
        """(size, place of the cut) as SDXL is told: a head is a picture that was cut out before, and nothing is cut off it."""
        return ((self.side, self.side), (0, 0)) if self.side else (self.original, self.crop)

    @property
    def parts(self) -> tuple[object, ...]:
        """What a cache key must contain so that other pixels never share it."""
        return (self.sample_key, self.size, self.scaled, self.crop, *(("flipped",) if self.flipped else ()))

    def levels(self, path: Path) -> torch.Tensor:
        """Uint8 (H, W, 3), of a clip of several frames (T, H, W, 3); AtelierError if the file is broken or was replaced since the
        folder was read."""
        if self.stretch is None:
            return self._whole(open_picture(path), path)
        every = [self._whole(frame, path).numpy() for frame in frames_of(path, self.stretch)]
        return torch.from_numpy(every[0] if len(every) == 1 else np.stack(every))

    def still(self, path: Path) -> Image.Image:
        """The whole picture, or the middle frame of a clip."""
        if self.stretch is None:
            return open_picture(path)
        middle = self.stretch.frames[len(self.stretch.frames) // 2]
        return next(frames_of(path, replace(self.stretch, frames=(middle,))))

    def _whole(self, image: Image.Image, path: Path) -> torch.Tensor:
        if image.size != self.original:
            raise AtelierError(f"{path}: the picture has changed since the folder was read. Queue the workflow again.")
        return self._cut(image)

    def pixels(self, path: Path) -> torch.Tensor:
        """``levels`` as float32 in 0..1."""
        return to_unit(self.levels(path))

    def mask_levels(self, sample: Sample) -> torch.Tensor:
        """Uint8 (H, W), cut as the picture is; 255 is learnt. AtelierError naming the file if it doesn't fit."""
        assert sample.mask is not None
        return self._cut(open_mask(sample.mask, sample.path, self.original))

    def mask(self, sample: Sample) -> torch.Tensor:
        """``mask_levels`` as float32 in 0..1."""
        return to_unit(self.mask_levels(sample))

    def _cut(self, image: Image.Image) -> torch.Tensor:
        left, top = self.crop
        return cut(image, self.scaled, (left, top, left + self.size[0], top + self.size[1]), self.flipped)


def view_of_before(shown: View, before: Sample) -> View:
    """How the picture at a slider's other end is shown beside ``shown``: cut at the same place, and turned with it."""
    return replace(shown, sample_key=before.key, original=(before.width, before.height))


def view(sample: Sample, config: SubsetConfig, size: Size, seed: int = 0, sighting: int = 0) -> View:
    """How ``sample`` is shown at ``size`` (width, height) the ``sighting``-th time.

    Seed and sighting matter only for ``crop`` = ``random``, whose places recur after ``config.variants`` sightings, or never
    where that is 0, and for ``flip``.
    """
    flipped = mirrored(config, seed, sample.key, sighting)
    if config.crop == "head" and sample.head is not None:
        square = window(sample.head, config.head_margin, sample.width, sample.height)
        cut_out = head_box(sample.width, sample.height, size, square)
        place, side = (cut_out.left, cut_out.top), round(square.side)
        return View(sample.key, size, (sample.width, sample.height), place, cut_out.scaled, flipped, side, sample.stretch)
    draw, crop = (0.5, 0.5), config.crop
    if crop == "random" and sighting != FIXED:
        draw = crop_draw(seed, sighting % config.variants if config.variants else sighting, sample.key)
    elif crop == "focus" and sample.focus is not None:
        draw = sample.focus
    placed = crop_box(sample.width, sample.height, size, crop, draw)
    return View(
        sample.key, size, (sample.width, sample.height), (placed.left, placed.top), placed.scaled, flipped, stretch=sample.stretch
    )


def views(sample: Sample, config: SubsetConfig, size: Size, seed: int, sightings: int) -> list[View]:
    """Every view that ``view`` can give within the first ``sightings`` sightings, each once; not for ``variants`` = 0."""
    if config.crop != "random" and not config.flip:
        return [view(sample, config, size)]
    places = config.variants if config.crop == "random" else 1
    seen = (view(sample, config, size, seed, sighting) for sighting in range(min(sightings, LOTS * places)))
    return list({shown.parts: shown for shown in seen}.values())
