"""The sums of five published recipes come out as their authors state them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset
from lora_atelier.training.dataset.scan import scan
from PIL import Image


def subset(sizes, repeats, prefix="a", caption="ohwx, a man", **values):
    samples = tuple(Sample(Path(f"{prefix}{i}.png"), w, h, caption, f"{prefix}{i:062x}") for i, (w, h) in enumerate(sizes))
    return Subset(SubsetConfig("input/test", **values), samples, repeats)


def test_ink_and_lore():
    """14 pictures as four subsets: 4 + 7 + 7 + 14 steps; 2000 steps are 63 epochs; step 1728 ends epoch 54."""
    pictures = [(600, 1000)] * 2 + [(1400, 1800)] * 6 + [(1024, 1024)] * 2 + [(1000, 600)] * 4
    plan = Plan(
        Dataset(
            (
                subset(pictures, 2, resolution=256, batch_size=8, buckets=False, crop="random", captions=False),
                subset(pictures, 2, resolution=512, batch_size=4),
                subset(pictures, 2, resolution=768, batch_size=4),
                subset(pictures, 2, resolution=1024, batch_size=2),
            )
        ),
        1,
    )
    steps = Counter(batch.subset for batch in plan.epoch_batches(0))
    assert [steps[i] for i in range(4)] == [4, 7, 7, 14] and plan.steps_per_epoch == 32
    assert plan.epochs_for(2000) == 63 and plan.locate(1728 - 1) == (54 - 1, 31)


@pytest.mark.parametrize("pictures", [30, 100])
def test_style_guide(pictures):
    """30 to 100 pictures, ten times each, twenty epochs."""
    plan = Plan(Dataset((subset([(1024, 1024)] * pictures, 10, resolution=1024, shuffle_captions=True, keep_tokens=1),)), 0)
    assert plan.steps_per_epoch * 20 == pictures * 200


def test_hosted_trainer():
    """20 pictures x 10 repeats are 200 steps an epoch, 2000 in ten; a regularisation set of 15 doubles the sightings."""
    training = subset([(512, 768)] * 20, 10, resolution=512, buckets=False)
    assert Plan(Dataset((training,)), 0).steps_per_epoch * 10 == 2000
    prior = subset([(512, 512)] * 15, 1, "r", None, resolution=512, role="regularisation")
    assert Plan(Dataset((training, prior)), 0).steps_per_epoch == 400


def test_real_life_face(tmp_path):
    """`image/25_MiraVelden`: the parent is the dataset; repeats = 4800 / (32 x 10) = 15."""
    folder = tmp_path / "image" / "25_MiraVelden"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (64, 64), (i * 40, 0, 0)).save(folder / f"{i}.png")
    (read,) = scan(tmp_path / "image", SubsetConfig("input/image", resolution=512, buckets=False))
    assert (read.repeats, read.class_caption, len(read.samples)) == (25, "MiraVelden", 4)
    assert Plan(Dataset((subset([(768, 768)] * 32, 15, resolution=768, buckets=False),)), 0).steps_per_epoch * 10 == 4800


def test_sdxl_subject(tmp_path):
    """30 pictures x 25 ask for 750 of `reg/1_man`; at 20 repeats 4 epochs are 2,400 steps without regularisation."""
    for name in ("Img/25_ohwx", "reg/1_man"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (64, 64), (i * 40, len(name), 0)).save(tmp_path / name / f"{i}.png")
    read = scan(tmp_path / "Img", SubsetConfig("input/Img", resolution=1024)) + scan(
        tmp_path / "reg", SubsetConfig("input/reg", resolution=1024, role="regularisation")
    )
    assert [(s.repeats, s.class_caption) for s in read] == [(25, "ohwx"), (1, "man")]
    assert [s.samples[0].caption for s in read] == ["ohwx", "man"]
    assert Plan(Dataset(read), 0).steps_per_epoch == 2 * 75

    pictures = [(1024, 1024)] * 30
    prior = subset([(1024, 1024)] * 750, 1, "r", "man", resolution=1024, role="regularisation")
    rows = Plan(Dataset((subset(pictures, 25, resolution=1024), prior)), 0).bucket_table()
    assert [row.sightings for row in rows] == [750, 750]
    assert Plan(Dataset((subset(pictures, 20, resolution=1024),)), 0).steps_per_epoch * 4 == 2400
