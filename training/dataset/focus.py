"""Focus point of a picture for cropping: faces where a detector is installed, else what ``smartcrop`` finds."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..errors import AtelierError
from .heads import cascade, detected

SIDE = 384
"""Longer side in pixels to which a picture is shrunk before it is looked at."""
SMALLEST = 24
"""A side below this many pixels has no place that matters more than another, and smartcrop cannot look at it."""
FACES = "frontalface_default"
NOT_INSTALLED = (
    "crop: focus needs the Python package smartcrop, which is not installed here. Install it with "
    "'pip install smartcrop', or choose center."
)
NO_FACES = (
    "focus keeps what stands out; faces are looked for once the Python package opencv-python-headless is installed in a version "
    "below 5."
)


def focus_point(image: Image.Image, shape: tuple[int, int]) -> tuple[float, float]:
    """The middle of what matters, in shares of width and height, if ``image`` (RGB) is cut to the aspect ratio of ``shape``.

    Faces win: the middle of the box around them all. AtelierError if smartcrop is not installed.
    """
    smartcrop = _smartcrop()
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    if min(small.size) < SMALLEST:
        return 0.5, 0.5
    boxes = _faces(np.asarray(small.convert("L")))
    if not boxes:
        scale = max(shape[0] / small.width, shape[1] / small.height)
        size = (max(1, min(small.width, round(shape[0] / scale))), max(1, min(small.height, round(shape[1] / scale))))
        # Overflow lies along one side only, so the window fills the picture and is never shrunk in search of a better one.
        found = smartcrop.crop(small, *size, min_scale=1.0, max_scale=1.0, step=4, prescale=False)["top_crop"]
        boxes = [(found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"])]
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, bottom = max(b[2] for b in boxes), max(b[3] for b in boxes)
    return round((left + right) / 2 / small.width, 4), round((top + bottom) / 2 / small.height, 4)


def _smartcrop() -> Any:
    try:
        from smartcrop import SmartCrop
    except ImportError as error:
        raise AtelierError(NOT_INSTALLED) from error
    return SmartCrop()


def finds_faces() -> bool:
    """Whether a face detector is installed here."""
    return cascade(FACES) is not None


def detector_name() -> str:
    """Which detectors are at work here; a cached focus belongs to them."""
    return "faces, smartcrop" if finds_faces() else "smartcrop"


def _faces(grey: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom) in pixels of the faces in an (H, W) uint8 picture."""
    detector = cascade(FACES)
    if detector is None:
        return []
    found = detected(detector, grey, 6, max(24, grey.shape[1] // 12))
    return [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in found]
