"""What is said about pictures before they are trained on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.near_duplicates import alike, duplicates, perceptual_hash
from lora_atelier.training.dataset.report import inspect, remarks
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset
from PIL import Image


def pictures(*sizes, caption="a cat", **values):
    samples = tuple(Sample(Path(f"{i}.png"), w, h, caption, f"{i:064x}") for i, (w, h) in enumerate(sizes))
    return Subset(SubsetConfig("input/x", **values), samples, 2)


def scene(seed, size=(96, 96)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def test_a_good_set_is_passed_over_in_silence():
    assert remarks(pictures((512, 512), (600, 800), (1024, 700))) == []


def test_small_pictures_are_named():
    said = remarks(pictures((512, 512), (200, 200), (400, 400)))
    assert said == [
        "too small, enlarged more than twice and therefore soft: 1.png (200 x 200, 2.6 times).",
        "1 picture smaller than the bucket, enlarged at most 1.3 times.",
    ]


def test_unusual_shapes_are_named():
    (said,) = remarks(pictures((1024, 1024), (1000, 4000), buckets=False))
    assert said == "unusual shape: 1.png (75% cut off)."


def test_pictures_without_a_caption_are_named_unless_all_are():
    some = Subset(
        SubsetConfig("input/x"), (*pictures((512, 512)).samples, *pictures((512, 512), caption=None).samples), 1
    )  # fmt: skip
    assert remarks(some) == ["no caption: 0.png."]
    assert remarks(pictures((512, 512), caption=None)) == []


def test_the_table_tells_bucket_box_and_scale():
    (row,) = inspect(Dataset((pictures((2000, 1000), resolution=512, buckets=False),)))
    assert row.to_dict() == {
        "name": "0.png", "subset": 1, "repeats": 2, "size": (2000, 1000), "bucket": (512, 512), "box": (500, 0, 1500, 1000),
        "caption": "a cat", "enlarged": 0.51,
    }  # fmt: skip


def test_the_hash_is_the_published_one():
    """9 grey pixels a row that grow darker or brighter; the bit is set where the right neighbour is brighter."""
    rows = np.tile(np.linspace(0, 240, 9).astype(np.uint8), (8, 1))
    rows[1] = rows[1][::-1]
    assert perceptual_hash(Image.fromarray(rows))[:16] == "ff00ffffffffffff"


@pytest.mark.parametrize("change", ["smaller", "jpeg", "brighter"])
def test_a_copy_of_a_picture_is_a_duplicate_and_another_picture_is_not(change):
    original = scene(1)
    if change == "smaller":
        copy = original.resize((48, 48), Image.Resampling.LANCZOS)
    elif change == "jpeg":
        file = io.BytesIO()
        original.save(file, "JPEG", quality=60)
        copy = Image.open(file)
    else:
        copy = original.point(lambda v: min(255, v + 3))
    assert duplicates([perceptual_hash(original), perceptual_hash(scene(2)), perceptual_hash(copy)]) == [(0, 2)]


def test_plain_pictures_of_different_colours_are_no_duplicates():
    red, green = (perceptual_hash(Image.new("RGB", (64, 64), colour)) for colour in ("red", "green"))
    assert not alike(red, green) and duplicates([red, green, "", "", red]) == [(0, 4)]


def test_a_thousand_different_pictures_have_no_duplicates():
    rng = np.random.default_rng(0)
    looks = [rng.bytes(8).hex() + "808080" for _ in range(1000)]
    assert duplicates(looks) == []
