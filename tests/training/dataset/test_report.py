"""What is said about pictures before they are trained on."""

from __future__ import annotations

from pathlib import Path

from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.report import inspect, remarks
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset


def pictures(*sizes, caption="a cat", **values):
    samples = tuple(Sample(Path(f"{i}.png"), w, h, caption, f"{i:064x}") for i, (w, h) in enumerate(sizes))
    return Subset(SubsetConfig("input/x", **values), samples, 2)


def test_a_good_set_is_passed_over_in_silence():
    assert remarks(pictures((512, 512), (600, 800), (1024, 700))) == []


def test_small_pictures_are_named():
    said = remarks(pictures((512, 512), (200, 200), (400, 400)))
    assert said == [
        "too small, enlarged more than twice and therefore soft: 1.png (200 x 200, 2.6 times).",
        "1 picture smaller than the bucket, enlarged at most 1.3 times.",
    ]


def test_pictures_far_below_the_resolution_are_named():
    sizes = (512, 512), (256, 256), (255, 256), (70, 90)
    (said,) = remarks(pictures(*sizes, bucket_no_upscale=True))
    assert said.startswith("trained on at less than a quarter of the resolution's area, since bucket_no_upscale is on (2): ")
    assert "2.png (192 x 256), 3.png (64 x 64)." in said
    assert not [one for one in remarks(pictures(*sizes)) if "quarter" in one]


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
