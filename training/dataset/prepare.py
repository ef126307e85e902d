"""From a sample and its bucket to pixels, and the numbers by which a cached latent is found again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import SubsetConfig
from ..errors import AtelierError
from .buckets import Size, crop_box
from .images import open_picture, to_tensor
from .samples import Sample


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

    @property
    def parts(self) -> tuple[str, Size, Size, tuple[int, int]]:
        """What a cache key must contain so that other pixels never share it."""
        return (self.sample_key, self.size, self.scaled, self.crop)

    def pixels(self, path: Path) -> torch.Tensor:
        """Float32 (H, W, 3) in 0..1; AtelierError if the file is broken or was replaced since the folder was read."""
        image = open_picture(path)
        if image.size != self.original:
            raise AtelierError(f"{path}: the picture has changed since the folder was read. Queue the workflow again.")
        left, top = self.crop
        return to_tensor(image, self.scaled, (left, top, left + self.size[0], top + self.size[1]))


def crop_draw(seed: int, epoch: int, sample_key: str) -> tuple[float, float]:
    """Two numbers in [0, 1) that depend on nothing but the arguments.

    They are the first two 53-bit halves of SHA-256("<seed>:<epoch>:<key>"), so a resumed run crops as the first one did.
    """
    digest = hashlib.sha256(f"{seed}:{epoch}:{sample_key}".encode()).digest()
    x, y = (int.from_bytes(digest[i : i + 8], "big") >> 11 for i in (0, 8))
    return x / 2**53, y / 2**53


def view(sample: Sample, config: SubsetConfig, size: Size, seed: int = 0, epoch: int = 0) -> View:
    """How ``sample`` is shown at ``size`` (width, height); seed and epoch matter only for ``crop`` = ``random``."""
    draw = crop_draw(seed, epoch, sample.key) if config.crop == "random" else (0.5, 0.5)
    placed = crop_box(sample.width, sample.height, size, config.crop, draw)
    return View(sample.key, size, (sample.width, sample.height), (placed.left, placed.top), placed.scaled)
