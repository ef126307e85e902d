"""The dataset as a value: chaining, fingerprint, summary."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset

CAT = Sample(Path("a/cat.png"), 64, 64, "a cat", "1" * 64)
DOG = Sample(Path("a/dog.png"), 64, 32, None, "2" * 64)


def dataset(*samples, repeats=1, **settings):
    return Dataset((Subset(SubsetConfig("input/a", **settings), samples, repeats),))


def test_chaining_keeps_the_order():
    one, two = dataset(CAT), dataset(DOG, resolution=256)
    assert (one + two).subsets == one.subsets + two.subsets
    assert list((one + two).samples) == [CAT, DOG]


def test_the_fingerprint_is_stable_and_sees_every_change():
    base = dataset(CAT, DOG)
    assert base.fingerprint == dataset(CAT, DOG).fingerprint
    others = [
        dataset(DOG, CAT),
        dataset(CAT),
        dataset(CAT, DOG, repeats=2),
        dataset(CAT, DOG, resolution=256),
        dataset(CAT, dataclasses.replace(DOG, caption="")),
        dataset(CAT, dataclasses.replace(DOG, key="3" * 64)),
        dataset(CAT, dataclasses.replace(DOG, mask_key="4" * 64)),
        dataset(CAT, dataclasses.replace(DOG, focus=(0.5, 0.25))),
        base + base,
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_the_place_on_the_disk_does_not_count():
    assert dataset(CAT).fingerprint == dataset(dataclasses.replace(CAT, path=Path("/elsewhere/cat.png"))).fingerprint


def test_the_summary_names_folder_pictures_and_missing_captions():
    noted = Dataset((dataclasses.replace(dataset(CAT, DOG, batch_size=2).subsets[0], warnings=("odd file",)),))
    assert noted.describe() == ("input/a: 2 pictures x 1, buckets around 512 px, batch 2, 1 without caption\nNote: odd file")
    assert "together: 4 pictures, 4 sightings an epoch" in (noted + noted).describe()
    assert (noted + noted).describe().count("odd file") == 1
