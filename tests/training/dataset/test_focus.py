"""The focus crop: what stands out is kept, the box is shown, and a missing package is said in a sentence."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import heads
from lora_atelier.training.dataset.buckets import crop_box
from lora_atelier.training.dataset.focus import focus_point
from lora_atelier.training.dataset.report import remarks
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.thumbnails import write_thumbnails
from lora_atelier.training.errors import AtelierError
from PIL import Image, ImageDraw, ImageFilter


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


def face(size):
    """A face as plain as a cascade of light and dark boxes needs it, ``size`` pixels wide and high."""
    drawn = Image.new("RGB", (160, 160), (120, 120, 120))
    draw = ImageDraw.Draw(drawn)
    draw.ellipse((28, 4, 132, 120), fill=(60, 40, 30))
    draw.ellipse((36, 18, 124, 152), fill=(225, 185, 160))
    draw.rectangle((40, 14, 120, 38), fill=(60, 40, 30))
    for x in (58, 102):
        draw.ellipse((x - 15, 56, x + 15, 80), fill=(175, 130, 110))
        draw.rounded_rectangle((x - 15, 54, x + 15, 60), 3, fill=(70, 45, 35))
        draw.ellipse((x - 11, 64, x + 11, 77), fill=(240, 240, 240))
        draw.ellipse((x - 5, 64, x + 5, 77), fill=(30, 25, 25))
    draw.ellipse((76, 72, 84, 108), fill=(240, 205, 180))
    draw.ellipse((68, 98, 92, 112), fill=(190, 145, 125))
    draw.ellipse((60, 120, 100, 134), fill=(150, 70, 70))
    return drawn.filter(ImageFilter.GaussianBlur(2)).resize((size, size), Image.Resampling.LANCZOS)


@pytest.fixture
def cascades():
    """OpenCV with its face cascade; versions from 5 on have none."""
    if not hasattr(pytest.importorskip("cv2"), "CascadeClassifier"):
        pytest.skip("this OpenCV has no cascades")


@pytest.fixture
def opencv(monkeypatch):
    """A function that takes OpenCV away, or gives it back."""

    def there(is_there):
        if is_there:
            monkeypatch.undo()
        else:
            monkeypatch.setitem(sys.modules, "cv2", None)
        heads.cascade.cache_clear()

    yield there
    there(True)


@pytest.mark.parametrize("x", [10, 460])
def test_a_face_wins_over_what_stands_out(cascades, x):
    """The face is grey beside the colourful disc at the other end of the picture."""
    pytest.importorskip("smartcrop")
    image = subject_at(600 - x - 60)
    image.paste(face(120), (x, 40))
    assert focus_point(image, (512, 512))[0] == pytest.approx((x + 60) / 600, abs=0.03)


def test_two_faces_are_kept_together(cascades):
    pytest.importorskip("smartcrop")
    image = Image.new("RGB", (600, 200), (120, 120, 120))
    for x in (180, 320):
        image.paste(face(110), (x, 40))
    assert focus_point(image, (512, 512))[0] == pytest.approx(305 / 600, abs=0.03)


def test_without_opencv_it_is_what_stands_out_and_a_remark_says_so(opencv, tmp_path):
    pytest.importorskip("smartcrop")
    opencv(False)
    image = subject_at(500)
    image.paste(face(120), (10, 40))
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "1.png")
    (subset,) = scan(tmp_path / "set", SubsetConfig("input/set", crop="focus", resolution=64))
    assert subset.samples[0].focus[0] > 0.7
    (said,) = [text for text in remarks(subset) if "faces" in text]
    assert "opencv-python-headless" in said and said.count(".") == 1
    (plain,) = scan(tmp_path / "set", SubsetConfig("input/set", resolution=64))
    assert not [text for text in remarks(plain) if "faces" in text]


def test_with_a_detector_nothing_is_said_and_the_focus_is_found_anew(cascades, opencv, tmp_path):
    """A focus that was remembered belongs to the detectors that found it."""
    pytest.importorskip("smartcrop")
    opencv(False)
    image = subject_at(500)
    image.paste(face(120), (10, 40))
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "1.png")
    config = SubsetConfig("input/set", crop="focus", resolution=64)
    assert scan(tmp_path / "set", config, index=tmp_path / "i.json")[0].samples[0].focus[0] > 0.7
    opencv(True)
    (subset,) = scan(tmp_path / "set", config, index=tmp_path / "i.json")
    assert subset.samples[0].focus[0] < 0.3 and not [text for text in remarks(subset) if "faces" in text]


def test_without_the_package_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "smartcrop", None)
    subject_at(300).save(tmp_path / "1.png")
    with pytest.raises(AtelierError, match=r"crop: focus needs .* smartcrop.*pip install smartcrop.*choose center"):
        scan(tmp_path, SubsetConfig("input/set", crop="focus"))
