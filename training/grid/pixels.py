"""Image tensors of a grid's pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BATCH_PIXELS = 120_000_000
"""Of all pages on the IMAGE wire, which takes 12 bytes for each; larger grids go on smaller there, and whole to the disk."""


def to_batch(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of possibly different sizes -> (B, H, W, 3) in 0..1, padded with white at the right and the bottom.

    All are made smaller by one factor where they would have more than 120 megapixels together.
    """
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    share = min(1.0, math.sqrt(BATCH_PIXELS / (width * height * len(pictures))))

    def pages() -> Iterator[Tensor]:
        for picture in pictures:
            sheet = Image.new("RGB", (width, height), "white")
            sheet.paste(picture)
            if share < 1:
                sheet = sheet.resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
            yield torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)

    return torch.stack(list(pages()))
