"""The focus crop: what stands out is kept, the box is shown, and a missing package is said in a sentence."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.buckets import crop_box
from lora_atelier.training.dataset.focus import focus_point
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.thumbnails import write_thumbnails
from lora_atelier.training.errors import AtelierError
from PIL import Image, ImageDraw


def subject_at(x, size=(600, 200)):
    """A busy, colourful disc on grey ground."""
    image = Image.new("RGB", size, (120, 120, 120))
    draw = ImageDraw.Draw(image)
    for i, radius in enumerate(range(70, 5, -8)):
        draw.ellipse((x - radius, 100 - radius, x + radius, 100 + radius), fill=("red", "yellow")[i % 2])
    return image


@pytest.mark.parametrize("x", [100, 300, 500])
def test_the_crop_holds_what_stands_out(x):
    pytest.importorskip("smartcrop")
    point = focus_point(subject_at(x), (512, 512))
    placed = crop_box(600, 200, (512, 512), "focus", point)
    assert placed.scaled == (1536, 512) and placed.top == 0
    left, right = placed.left * 200 / 512, (placed.left + 512) * 200 / 512
    assert left <= x - 60 and x + 60 <= right


def test_the_point_is_put_in_the_middle_as_far_as_the_picture_reaches():
    assert crop_box(1000, 500, (500, 500), "focus", (0.5, 0.5)).left == 250
    assert crop_box(1000, 500, (500, 500), "focus", (0.6, 0.1)).left == 350
    assert crop_box(1000, 500, (500, 500), "focus", (0.0, 0.0)).left == 0
    assert crop_box(1000, 500, (500, 500), "focus", (1.0, 1.0)).left == 500


def test_a_line_of_a_picture_has_its_focus_in_the_middle():
    pytest.importorskip("smartcrop")
    assert focus_point(Image.new("RGB", (4000, 8)), (512, 512)) == (0.5, 0.5)


def test_the_preview_shows_the_box(tmp_path):
    pytest.importorskip("smartcrop")
    (tmp_path / "set").mkdir()
    subject_at(500).save(tmp_path / "set" / "1.png")
    dataset = Dataset(scan(tmp_path / "set", SubsetConfig("input/set", crop="focus", buckets=False)))
    assert 0.7 < next(iter(dataset.samples)).focus[0] < 0.95
    with Image.open(write_thumbnails(dataset, tmp_path / "shown")[0]) as shown:
        assert shown.size == (192, 64)
        grey = np.asarray(shown.convert("L"))
    assert grey[5, 20] < 70 < 100 < grey[5, 165], "dark outside the box, bright inside"


def test_without_the_package_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "smartcrop", None)
    subject_at(300).save(tmp_path / "1.png")
    with pytest.raises(AtelierError, match=r"crop: focus needs .* smartcrop.*pip install smartcrop.*choose center"):
        scan(tmp_path, SubsetConfig("input/set", crop="focus"))
