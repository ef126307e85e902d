"""Pictures of nothing in particular, the same on every machine and in every run."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise_picture(size: tuple[int, int], sigma: float, seed: int = 0) -> Image.Image:
    """Grey noise about the middle as RGB, ``size`` in px (width, height), ``sigma`` in grey levels."""
    values = np.random.default_rng(seed).normal(128, sigma, (size[1], size[0]))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
