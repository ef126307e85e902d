"""Small pictures of what will be trained on, for the node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ..files import replacing
from .cache import cache_key
from .images import open_picture
from .plan import Plan
from .prepare import View, view
from .samples import Dataset, Sample

SIDE = 192
"""Longer side of a thumbnail in pixels."""


def _views(dataset: Dataset) -> Iterator[tuple[Sample, View]]:
    """Every picture as its bucket shows it, in the order of the folders."""
    sizes = {(number, index): size for number, size, members in Plan(dataset, 0).buckets for index in members}
    for number, subset in enumerate(dataset.subsets):
        for index, sample in enumerate(subset.samples):
            yield sample, view(sample, subset.config, sizes[number, index])


def write_thumbnails(dataset: Dataset, folder: Path, limit: int = 24) -> list[Path]:
    """JPEG files in ``folder`` of the first ``limit`` pictures, scaled and cut as their buckets ask; existing ones are kept."""
    paths: list[Path] = []
    for sample, shown in _views(dataset):
        if len(paths) >= limit:
            break
        path = folder / f"{cache_key(*shown.parts)[:32]}.jpg"
        if not path.is_file():
            left, top = shown.crop
            x, y = shown.original[0] / shown.scaled[0], shown.original[1] / shown.scaled[1]
            part = (left * x, top * y, (left + shown.size[0]) * x, (top + shown.size[1]) * y)
            shrink = min(1.0, SIDE / max(shown.size))
            size = (max(1, round(shown.size[0] * shrink)), max(1, round(shown.size[1] * shrink)))
            image = open_picture(sample.path)
            part = (part[0], part[1], min(part[2], image.width), min(part[3], image.height))
            with replacing(path) as temporary:
                image.resize(size, Image.Resampling.LANCZOS, part, reducing_gap=2.0).save(temporary, "JPEG", quality=88)
        paths.append(path)
    return paths
