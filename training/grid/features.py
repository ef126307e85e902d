"""Image embeddings for comparison: from a vision model or from simple statistics, one direction a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..dataset.images import open_picture
from ..errors import AtelierError

SIDE = 224
"""Pixels of the shorter side at which pictures are looked at."""
MOST_PICTURES = 400
"""Of a larger dataset an even share is looked at."""


class Embedder(Protocol):
    """Image embedding model."""

    @property
    def name(self) -> str: ...

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) in 0..1 -> (B, D)."""
        ...


class ColoursAndEdges:
    """Colours and outlines, and where they are; knows nothing of what a picture shows.

    Three parts that count alike: the colours of an 8 x 8 mosaic (as differences from middle grey), a histogram of 64 colours,
    and the edges' directions in 4 x 4 fields (a coarse form of Dalal & Triggs 2005). It tells a style of flat colours and
    outlines from another, and a copied picture from a new one; it cannot tell a fox from a dog.
    """

    name = "colours and edges"

    def embed(self, pixels: Tensor) -> Tensor:
        x = F.interpolate(pixels.float().movedim(-1, 1), (64, 64), mode="area")
        parts = [mosaic(x), histogram(x), edges(x)]
        return torch.cat([F.normalize(part.flatten(1), dim=1) for part in parts], 1) / math.sqrt(len(parts))


def mosaic(x: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 -> (B, 192): mean colours of 8 x 8 fields, middle grey being 0."""
    return F.adaptive_avg_pool2d(x, 8).flatten(1) - 0.5


def histogram(x: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 -> (B, 64): square roots of the shares of 4 x 4 x 4 colours (Hellinger's distance)."""
    level = (x * 4).long().clamp(0, 3)
    bins = (level[:, 0] * 16 + level[:, 1] * 4 + level[:, 2]).flatten(1)
    return F.one_hot(bins, 64).float().mean(dim=1).sqrt()


def edges(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 128): square roots of the edge strength in 8 directions (of 180 degrees) and 4 x 4 fields."""
    grey = F.pad(x.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    strength = torch.hypot(across, down)
    direction = (torch.atan2(down, across) / math.pi * 8 + 0.5).floor().long() % 8
    spread = torch.zeros(len(x), 8, *x.shape[2:]).scatter_(1, direction, strength)
    return F.adaptive_avg_pool2d(spread, 4).flatten(1).sqrt()


def to_pixels(picture: Image.Image) -> Tensor:
    """(1, H, W, 3) in 0..1, made no larger than needed."""
    small = picture.convert("RGB")
    if min(small.size) > SIDE:
        share = SIDE / min(small.size)
        small = small.resize((round(small.width * share), round(small.height * share)), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)[None]


def embed_pictures(embedder: Embedder, pictures: Iterable[Image.Image]) -> Tensor:
    """(N, D), every row of length 1; one picture at a time, since their sizes differ."""
    rows = [embedder.embed(to_pixels(picture)) for picture in pictures]
    return F.normalize(torch.cat(rows).float(), dim=1) if rows else torch.empty(0, 0)


def embed_files(embedder: Embedder, paths: Sequence[Path]) -> Tensor:
    """The same for files; those that are gone or broken are left out."""

    def opened() -> Iterable[Image.Image]:
        for path in evenly(paths, MOST_PICTURES):
            try:
                yield open_picture(path)
            except (AtelierError, OSError):
                continue

    return embed_pictures(embedder, opened())


def evenly(items: Sequence[Path], most: int) -> list[Path]:
    """All of them, or ``most`` at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
