"""Heads in pictures: the largest face that OpenCV's cascades find, and the square around it that is trained on."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import AtelierError

SIDE = 1024
"""Longer side in pixels to which a picture is shrunk before it is looked at."""
SMALLEST = 32
"""Side in pixels of the smallest face that is looked for there."""
SURE = 6
"""Neighbouring boxes that have to agree."""
DETECTOR = "opencv frontal, profile"
"""What is at work; a cached head belongs to it."""
NOT_INSTALLED = (
    "crop: head needs the Python package opencv-python-headless in a version below 5, which is not installed here. Install it "
    "with 'pip install \"opencv-python-headless<5\"', or choose focus or center."
)

_looking = threading.Lock()

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in shares of the picture's sides."""


class Face(NamedTuple):
    """The largest face of a picture."""

    box: Box
    others: int
    """How many more there are."""


class Window(NamedTuple):
    """A square in a picture, in pixels of it."""

    left: float
    top: float
    side: float


@lru_cache(maxsize=4)
def cascade(name: str) -> Any:
    """OpenCV's cascade of this name, or None where OpenCV, or its cascades (from version 5 on), are missing."""
    try:
        import cv2

        folder: Any = cv2.data  # type: ignore[attr-defined]  # a module that OpenCV's type hints leave out
        detector = cv2.CascadeClassifier(f"{folder.haarcascades}haarcascade_{name}.xml")
    except (ImportError, AttributeError):
        return None
    return None if detector.empty() else detector


def largest_face(image: Image.Image) -> Face | None:
    """The largest face, seen from the front, else from either side; None without any. AtelierError without OpenCV's cascades."""
    frontal, profile = cascade("frontalface_default"), cascade("profileface")
    if frontal is None or profile is None:
        raise AtelierError(NOT_INSTALLED)
    small = image.copy()
    small.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    grey = np.asarray(small.convert("L"))
    found = detected(frontal, grey, SURE, SMALLEST)
    if not found:  # the cascade knows faces that look to the left
        turned = detected(profile, np.ascontiguousarray(grey[:, ::-1]), SURE, SMALLEST)
        mirrored = [(small.width - x - w, y, w, h) for x, y, w, h in turned]
        found = [*detected(profile, grey, SURE, SMALLEST), *mirrored]
        found = [max(found, key=lambda one: one[2])] if found else []
    if not found:
        return None
    x, y, w, h = max(found, key=lambda one: one[2] * one[3])
    across, down = small.size
    box = (x / across, y / down, min(1.0, (x + w) / across), min(1.0, (y + h) / down))
    return Face((round(box[0], 4), round(box[1], 4), round(box[2], 4), round(box[3], 4)), len(found) - 1)


def detected(detector: Any, grey: np.ndarray, neighbours: int, smallest: int) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of what a cascade finds in an (H, W) uint8 picture; by one thread at a time.

    A cascade keeps what it works on in itself, and the canvas may ask for a folder while a run reads another.
    """
    with _looking:
        found = detector.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=neighbours, minSize=(smallest, smallest))
    return [(int(x), int(y), int(w), int(h)) for x, y, w, h in found]


def window(face: Box, margin: float, width: int, height: int) -> Window:
    """The square around a face of a picture of width x height pixels, with ``margin`` times the face's size on every side.

    It is moved, and at last made smaller, where the picture ends.
    """
    left, top, right, bottom = face[0] * width, face[1] * height, face[2] * width, face[3] * height
    side = min(max(right - left, bottom - top) * (1 + 2 * margin), width, height)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    return Window(min(max(0.0, x), width - side), min(max(0.0, y), height - side), side)
