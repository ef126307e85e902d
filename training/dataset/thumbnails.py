"""Thumbnails of what will be trained on, for the node."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from ..files import replacing
from .cache import cache_key
from .report import Inspected, inspect
from .samples import Dataset

SIDE = 192
"""Longer side of a thumbnail in pixels."""
FRAME = (255, 120, 0)


def write_thumbnails(dataset: Dataset, folder: Path, limit: int = 24) -> list[Path]:
    """JPEG files in ``folder`` of the first ``limit`` pictures; existing ones are kept.

    They are scaled and cut as their buckets ask. Where the crop is ``focus`` or ``head``, the whole picture is shown, dark
    outside the part that is kept.
    """
    paths: list[Path] = []
    for picture in inspect(dataset)[:limit]:
        whole = dataset.subsets[picture.subset].config.crop in ("focus", "head")
        path = folder / f"{cache_key(*picture.shown.parts, *(('whole',) if whole else ()))[:32]}.jpg"
        if not path.is_file():
            image = picture.shown.still(picture.path)
            small = _framed(image, picture) if whole else _part(image, picture)
            with replacing(path) as temporary:
                small.save(temporary, "JPEG", quality=88)
        paths.append(path)
    return paths


def _part(image: Image.Image, picture: Inspected) -> Image.Image:
    shown = picture.shown
    left, top = shown.crop
    x, y = shown.original[0] / shown.scaled[0], shown.original[1] / shown.scaled[1]
    part = (left * x, top * y, min((left + shown.size[0]) * x, image.width), min((top + shown.size[1]) * y, image.height))
    return image.resize(_shrunk(shown.size), Image.Resampling.LANCZOS, part, reducing_gap=2.0)


def _framed(image: Image.Image, picture: Inspected) -> Image.Image:
    small = image.resize(_shrunk(image.size), Image.Resampling.LANCZOS, reducing_gap=2.0)
    x, y = small.width / image.width, small.height / image.height
    left, top, right, bottom = picture.box
    box = (round(left * x), round(top * y), max(1, round(right * x)), max(1, round(bottom * y)))
    dark = Image.blend(small, Image.new("RGB", small.size), 0.6)
    dark.paste(small.crop(box), box[:2])
    ImageDraw.Draw(dark).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=FRAME, width=2)
    return dark


def _shrunk(size: tuple[int, int]) -> tuple[int, int]:
    shrink = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
