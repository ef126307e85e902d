"""The comparison with the published rules in docs/buckets.md, computed anew."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset

STEP, REPEATS, BATCH = 64, 2, 4


def pictures():
    """200 sizes of the same area with aspect ratios from 1:4 to 4:1."""
    stream = random.Random(2024)
    aspects = [math.exp(stream.uniform(-math.log(4), math.log(4))) for _ in range(200)]
    return [(round(1200 * math.sqrt(a)), round(1200 / math.sqrt(a))) for a in aspects]


def published(resolution):
    """The bucket of every picture by the rules of the common trainers, and the number of buckets that there are."""
    sizes = {(resolution, resolution)}
    for width in range(256, 1024 + 1, STEP):
        height = min(1024, resolution * resolution // width // STEP * STEP)
        if height >= 256:
            sizes |= {(width, height), (height, width)}
    ordered = sorted(sizes)
    return [min(ordered, key=lambda s: abs(w / h - s[0] / s[1])) for w, h in pictures()], len(sizes)


def ours(resolution):
    from lora_atelier.training.dataset.buckets import bucket_sizes

    samples = tuple(Sample(Path(f"{i}.png"), w, h, None, f"{i:064x}") for i, (w, h) in enumerate(pictures()))
    plan = Plan(Dataset((Subset(SubsetConfig("input/x", resolution=resolution, batch_size=BATCH), samples, REPEATS),)), 0)
    found = {index: size for _, size, members in plan.buckets for index in members}
    assert sum(len(batch.samples) for batch in plan.epoch_batches(0)) == 200 * REPEATS
    chosen = [found[i] for i in range(200)]
    assert plan.steps_per_epoch == steps(chosen)
    return chosen, len(bucket_sizes(resolution, STEP))


def steps(chosen):
    return sum(-(-count * REPEATS // BATCH) for count in Counter(chosen).values())


def row(resolution, rule, chosen, buckets, same):
    cuts = [1 - math.exp(-abs(math.log(w * b[1] / (h * b[0])))) for (w, h), b in zip(pictures(), chosen, strict=True)]
    area = sum(w * h for w, h in chosen) / len(chosen) / resolution**2
    return (
        f"| {resolution} | {rule} | {buckets} | {same} | {100 * sum(cuts) / 200:.1f} % | {100 * max(cuts):.0f} % | "
        f"{100 * area:.0f} % | {steps(chosen)} | {200 * REPEATS} |"
    )


@pytest.mark.parametrize("resolution", [512, 768, 1024])
def test_the_table_is_true(root, resolution):
    page = (root / "docs" / "buckets.md").read_text(encoding="utf-8")
    theirs, count = published(resolution)
    mine, my_count = ours(resolution)
    same = f"{sum(a == b for a, b in zip(theirs, mine, strict=True))} of 200"
    assert row(resolution, "published", theirs, count, "-") in page
    assert row(resolution, "this pack", mine, my_count, same) in page
