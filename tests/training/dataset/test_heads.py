"""The head crop: a square around the largest face, with the margin that was asked for; what is not found is said."""

from __future__ import annotations

import sys
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests.training.dataset.test_focus import cascades, face
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import heads
from lora_atelier.training.dataset.buckets import head_box
from lora_atelier.training.dataset.encoded import size_conditioning
from lora_atelier.training.dataset.heads import largest_face, window
from lora_atelier.training.dataset.index import Index
from lora_atelier.training.dataset.masks import open_mask
from lora_atelier.training.dataset.plan import Plan, size_of
from lora_atelier.training.dataset.report import inspect, remarks
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.steps_ahead import SubsetSource, steps_per_epoch
from lora_atelier.training.dataset.views import view
from lora_atelier.training.errors import AtelierError
from PIL import Image

__all__ = ["cascades"]
CONFIG = SubsetConfig("input/set", crop="head", resolution=128, batch_size=4, bucket_step=32)


def photo(*places, size=(900, 600)):
    """Grey, with faces as (left, top, side)."""
    image = Image.new("RGB", size, (120, 120, 120))
    for left, top, side in places:
        image.paste(face(side), (left, top))
    return image


@pytest.fixture
def folder(cascades, tmp_path):
    photo((500, 200, 160)).save(tmp_path / "one.png")
    photo((60, 60, 120), (560, 240, 240)).save(tmp_path / "two.png")
    photo().save(tmp_path / "none.png")
    return tmp_path


def test_the_largest_face_is_found_where_it_is(cascades):
    found = largest_face(photo((60, 60, 120), (560, 240, 240)))
    left, top, right, bottom = (share * side for share, side in zip(found.box, (900, 600) * 2, strict=True))
    assert found.others == 1 and 560 <= left < right <= 800 and 240 <= top < bottom <= 480
    assert (left + right) / 2 == pytest.approx(680, abs=15)
    assert largest_face(photo()) is None


def test_a_small_face_in_a_large_photo_is_found(cascades):
    """Three in a hundred of the picture's width, which focus does not look for."""
    assert largest_face(photo((3000, 900, 200), size=(4000, 3000))) is not None


SHARE = st.floats(0.0, 1.0, allow_nan=False)


@given(st.tuples(SHARE, SHARE, SHARE, SHARE), st.floats(0, 5), st.integers(8, 5000), st.integers(8, 5000))
def test_the_window_lies_in_the_picture_and_holds_the_face(shares, margin, width, height):
    left, right = sorted(shares[:2])
    top, bottom = sorted(shares[2:])
    box = (left, top, max(right, min(1.0, left + 0.01)), max(bottom, min(1.0, top + 0.01)))
    x, y, side = window(box, margin, width, height)
    assert x >= 0 and y >= 0 and x + side <= width + 1e-6 and y + side <= height + 1e-6 and side <= min(width, height)
    if (box[2] - box[0]) * width <= side and (box[3] - box[1]) * height <= side:
        assert x <= box[0] * width + 1e-6 and box[2] * width <= x + side + 1e-6
        assert y <= box[1] * height + 1e-6 and box[3] * height <= y + side + 1e-6
    if side > 1e-6:
        placed = head_box(width, height, (128, 128), (x, y, side))
        assert 0 <= placed.left <= placed.scaled[0] - 128 and 0 <= placed.top <= placed.scaled[1] - 128


def test_the_margin_is_in_sizes_of_the_face():
    """A face of 100 pixels in the middle of 1000: three quarters on each side are 250 pixels."""
    face = (0.45, 0.45, 0.55, 0.55)
    assert window(face, 0.75, 1000, 1000) == pytest.approx((375, 375, 250))
    assert window(face, 0.0, 1000, 1000) == pytest.approx((450, 450, 100))
    assert window((0.0, 0.0, 0.1, 0.1), 0.75, 1000, 1000) == pytest.approx((0, 0, 250)), "moved in at the edge"
    assert window((0.2, 0.2, 0.8, 0.8), 0.75, 1000, 1000) == pytest.approx((0, 0, 1000)), "as much as there is"


def test_heads_are_squares_of_the_resolution_and_the_rest_stays_whole(folder):
    (subset,) = scan(folder, CONFIG)
    none, one, two = subset.samples
    assert none.head is None and size_of(none, CONFIG) != (128, 128) == size_of(one, CONFIG) == size_of(two, CONFIG)
    assert [text for text in subset.warnings if "no face was found" in text and "none.png" in text]
    assert [text for text in subset.warnings if "several faces" in text and "two.png" in text and "one.png" not in text]
    assert not [text for text in remarks(subset) if "unusual shape" in text]


def test_what_is_trained_is_the_head_as_if_it_had_been_cut_by_hand(folder):
    (subset,) = scan(folder, CONFIG)
    sample = subset.samples[1]
    shown = view(sample, CONFIG, (128, 128))
    x, y, side = window(sample.head, CONFIG.head_margin, 900, 600)
    with Image.open(sample.path) as image:
        expected = image.convert("RGB").resize((128, 128), Image.Resampling.LANCZOS, (x, y, x + side, y + side))
    seen = shown.levels(sample.path).numpy()
    assert seen.shape == (128, 128, 3) and np.abs(seen.astype(int) - np.asarray(expected, int)).mean() < 2
    picture = next(one for one in inspect(Dataset((subset,))) if one.path == sample.path)
    assert picture.box == pytest.approx((x, y, x + side, y + side), abs=2)


def test_sdxl_is_told_of_a_picture_that_was_cut_out_before(folder):
    sample = scan(folder, CONFIG)[0].samples[1]
    side = round(window(sample.head, CONFIG.head_margin, 900, 600).side)
    assert size_conditioning(view(sample, CONFIG, (128, 128))) == {
        "width": side, "height": side, "crop_w": 0, "crop_h": 0, "target_width": 128, "target_height": 128,
    }  # fmt: skip


def test_masks_are_cut_as_the_head_is(folder):
    mask = Image.new("L", (900, 600), 0)
    mask.paste(255, (500, 200, 660, 360))
    mask.save(folder / "one.mask.png")
    config = SubsetConfig("input/set", crop="head", resolution=128, masks="files")
    sample = scan(folder, config)[0].samples[1]
    cut = view(sample, config, (128, 128)).mask_levels(sample)
    assert open_mask(sample.mask, sample.path, (900, 600)).size == (900, 600)
    assert cut[64, 64] == 255 and cut[0, 0] == 0


def test_a_larger_margin_shows_more_and_is_other_data(folder):
    sides, prints = [], []
    for margin in (0.0, 0.5, 1.0):
        config = SubsetConfig("input/set", crop="head", resolution=128, head_margin=margin)
        found = scan(folder, config)
        sides.append(view(found[0].samples[1], config, (128, 128)).side)
        prints.append(Dataset(found).fingerprint)
    assert all(a < b for a, b in pairwise(sides)) and len(set(prints)) == 3


def test_the_margin_means_nothing_for_other_crops(folder):
    prints = {Dataset(scan(folder, SubsetConfig("input/set", head_margin=margin))).fingerprint for margin in (0.0, 1.0)}
    assert len(prints) == 1


def test_heads_are_remembered_and_looked_for_once(folder, tmp_path_factory, monkeypatch):
    file = tmp_path_factory.mktemp("cache") / "index.json"
    before = scan(folder, CONFIG, index=file)
    from lora_atelier.training.dataset import index

    index._known.clear()
    monkeypatch.setattr(index, "largest_face", lambda _: pytest.fail("the pictures have not changed"))
    assert scan(folder, CONFIG, index=file) == before
    text = file.read_text()
    for wrong in ("[0.1, 0.1, 0.05, 0.2, 0]", "[0.1, 0.2, 0.3]", "[2, 2, 3, 3, 0]", "[0.1, 0.1, 0.2, 0.2, -1]", '"x"', "null"):
        damaged = text.replace(f'"{heads.DETECTOR}": []', f'"{heads.DETECTOR}": {wrong}')
        assert damaged != text
        file.write_text(damaged)
        index._known.clear()
        assert Index(file).remembered(folder / "none.png") is None, wrong


def test_the_steps_are_known_before_the_pictures_are_read(folder, tmp_path_factory):
    """As soon as somebody has looked for faces; until then every picture counts as one with a head."""
    file = tmp_path_factory.mktemp("cache") / "index.json"
    source = SubsetSource(CONFIG, folder, folder, file)
    from lora_atelier.training.dataset import index

    index._known.clear()
    assert steps_per_epoch([source]) == 1
    found = scan(folder, CONFIG, index=file)
    assert steps_per_epoch([source]) == Plan(Dataset(found), 0).steps_per_epoch == 2


def test_without_opencv_a_sentence_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    heads.cascade.cache_clear()
    try:
        from lora_atelier.training.dataset import index

        index._known.clear()
        with pytest.raises(AtelierError, match="crop: head needs the Python package opencv-python-headless"):
            scan(folder, CONFIG)
    finally:
        heads.cascade.cache_clear()


def test_a_cascade_works_for_one_thread_at_a_time():
    class Cascade:
        busy, most = 0, 0

        def detectMultiScale(self, grey, **_):
            self.busy += 1
            self.most = max(self.most, self.busy)
            time.sleep(0.005)
            self.busy -= 1
            return [(1, 2, 3, 4)]

    cascade, found = Cascade(), []
    grey = np.zeros((8, 8), np.uint8)
    threads = [threading.Thread(target=lambda: found.extend(heads.detected(cascade, grey, 6, 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cascade.most == 1 and found == [(1, 2, 3, 4)] * 4
