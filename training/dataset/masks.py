"""Loss masks: which part of a picture is learnt. White is learnt, black is not."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ..errors import AtelierError
from .images import alpha_of, check_picture, open_picture, picture_size


def check_mask(mask: Path, picture: Path, size: tuple[int, int]) -> None:
    """AtelierError naming the file if it is broken or has another shape than the picture, which has ``size``; hardly decodes."""
    check_picture(mask)
    _same_shape(mask, picture_size(mask), picture, size)


def open_mask(mask: Path, picture: Path, size: tuple[int, int]) -> Image.Image:
    """Grey picture of ``size`` (width, height); ``mask`` = ``picture`` takes the picture's own transparency (none: all white).

    AtelierError naming the file if it is broken or has another shape than the picture.
    """
    if mask == picture:
        alpha = alpha_of(picture)
        return Image.new("L", size, 255) if alpha is None else alpha
    grey = open_picture(mask).convert("L")
    _same_shape(mask, grey.size, picture, size)
    return grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR)


def _same_shape(mask: Path, own: tuple[int, int], picture: Path, size: tuple[int, int]) -> None:
    if not same_shape(own, size):
        raise AtelierError(
            f"{mask}: this mask has {own[0]} x {own[1]} pixels and another shape than {picture.name} "
            f"({size[0]} x {size[1]}). Draw it on a copy of the picture."
        )


def same_shape(own: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a mask of these sides fits a picture of those; one pixel of rounding on the shorter side is what tools that shrink
    pictures leave."""
    return abs(own[0] * size[1] - own[1] * size[0]) <= max(*size, *own)


def to_latent_size(mask: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """(H, W) pixels -> (1, h, w): each cell of the latent gets the mean of the pixels that it covers."""
    return torch.nn.functional.adaptive_avg_pool2d(mask[None], cells)
