"""Views: which part of the picture is seen, and how it is drawn for random crops."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.samples import Sample
from lora_atelier.training.dataset.views import view, views
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.seeding import crop_draw
from PIL import Image

KEY = "ab" * 32


def sample(width, height, path="x.png", key=KEY):
    return Sample(Path(path), width, height, None, key)


def test_a_centred_view_reports_what_sdxl_needs():
    seen = view(sample(2000, 1000), SubsetConfig("input/x", resolution=512), (512, 512))
    assert (seen.sample_key, seen.size, seen.original) == (KEY, (512, 512), (2000, 1000))
    assert (seen.scaled, seen.crop) == ((1024, 512), (256, 0))


def test_random_crops_change_with_sighting_and_seed_and_come_again():
    config = SubsetConfig("input/x", resolution=512, crop="random")
    crops = [view(sample(2000, 1000), config, (512, 512), seed=3, sighting=e).crop for e in range(8)]
    assert len(set(crops)) == 4 and crops[:4] == crops[4:], "four cached places that are taken in turn"
    assert crops == [view(sample(2000, 1000), config, (512, 512), seed=3, sighting=e).crop for e in range(8)]
    assert crops != [view(sample(2000, 1000), config, (512, 512), seed=4, sighting=e).crop for e in range(8)]
    assert all(0 <= left <= 512 and top == 0 for left, top in crops)


@pytest.mark.parametrize(("variants", "places"), [(1, 1), (7, 7), (0, 40)])
def test_as_many_places_come_up_as_are_asked_for(variants, places):
    """0: a new one at every sighting."""
    config = SubsetConfig("input/x", resolution=512, crop="random", variants=variants)
    crops = [view(sample(40_000, 1000), config, (512, 512), seed=3, sighting=e).crop for e in range(40)]
    assert len(set(crops)) == places
    assert crops[0] == view(sample(40_000, 1000), SubsetConfig("input/x", crop="random"), (512, 512), seed=3).crop


@pytest.mark.parametrize("variants", [1, 4, 9])
def test_every_view_of_a_long_run_is_known_beforehand(variants):
    config = SubsetConfig("input/x", resolution=512, crop="random", flip=True, variants=variants)
    known = {one.parts for one in views(sample(2000, 1000), config, (512, 512), 3, 2000)}
    seen = {view(sample(2000, 1000), config, (512, 512), 3, e).parts for e in range(2000)}
    assert known == seen and len(seen) == 2 * variants


def test_the_draw_is_the_documented_one():
    digest = hashlib.sha256(f"7:2:{KEY}".encode()).hexdigest()
    x, y = crop_draw(7, 2, KEY)
    assert x == (int(digest[:16], 16) >> 11) / 2**53
    assert y == (int(digest[16:32], 16) >> 11) / 2**53


def test_draws_are_spread_evenly():
    draws = np.array([crop_draw(0, epoch, KEY) for epoch in range(2000)])
    # Mean of 2000 uniform numbers: 0.5 with a standard error of 0.0065.
    assert np.allclose(draws.mean(0), 0.5, atol=0.03) and draws.min() >= 0 and draws.max() < 1


def test_parts_differ_whenever_the_pixels_may():
    config = SubsetConfig("input/x", resolution=512)
    stretched = SubsetConfig("input/x", resolution=512, crop="none")
    views = [
        view(sample(2000, 1000), config, (512, 512)),
        view(sample(2000, 1000, key="cd" * 32), config, (512, 512)),
        view(sample(2000, 1000), config, (640, 384)),
        view(sample(2000, 1000), stretched, (512, 512)),
        view(sample(2000, 1000), SubsetConfig("input/x", crop="random"), (512, 512), sighting=1),
    ]
    assert len({one.parts for one in views}) == len(views)


def test_pixels_are_the_named_part(tmp_path):
    """A picture whose left half is black and right half white, cut in the middle."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 64:] = 255
    path = tmp_path / "halves.png"
    Image.fromarray(pixels).save(path)
    seen = view(sample(128, 64), SubsetConfig("input/x", resolution=64), (64, 64)).pixels(path)
    assert seen.shape == (64, 64, 3) and seen.dtype == torch.float32
    assert torch.equal(seen[:, :32], torch.zeros(64, 32, 3)) and torch.equal(seen[:, 32:], torch.ones(64, 32, 3))


def test_a_picture_that_was_replaced_is_named(tmp_path):
    path = tmp_path / "new.png"
    Image.new("RGB", (10, 10)).save(path)
    with pytest.raises(AtelierError, match=r"new\.png: the picture has changed"):
        view(sample(128, 64), SubsetConfig("input/x"), (64, 64)).pixels(path)
