"""Pairs of pictures: what a model that edits is shown beside each picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training import prompting
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import steps_ahead
from lora_atelier.training.dataset.cache import TensorCache
from lora_atelier.training.dataset.controls import PIXELS, SHAPES, STEP, Controls, whole
from lora_atelier.training.dataset.encoded import EncodedDataset, work_of
from lora_atelier.training.dataset.images import to_unit
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.report import remarks
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.dataset.steps_ahead import SubsetSource
from lora_atelier.training.tensors import references
from PIL import Image

from .test_encoded import Averages


class Eyes:
    """A text encoder that says how long a caption is, and what colour the pictures beside it have on their left."""

    def __init__(self):
        self.calls = 0

    def encode(self, text, pictures=()):
        self.calls += 1
        assert all(one.ndim == 4 and len(one) == 1 for one in pictures)
        seen = [one[0, :, : one.shape[2] // 2].mean().item() for one in pictures]
        return {"cond": torch.tensor([[[float(len(text)), *seen]]])}

    def encode_all(self, texts):
        return map(self.encode, texts)

    eyes = "two"

    def identity(self):
        return "eyes"

    def reading_of(self, text):
        return ()


def halves(left, right, size):
    """A picture whose halves have two grey levels."""
    pixels = np.full((size[1], size[0], 3), left, np.uint8)
    pixels[:, size[0] // 2 :] = right
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "control").mkdir(parents=True)
    for i in range(3):
        halves(10 * i, 200, (64, 64)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"make it blue, {'very ' * i}")
    halves(0, 255, (100, 52)).save(folder / "control" / "0.png")
    halves(51, 255, (64, 64)).save(folder / "control" / "1.png")
    halves(102, 255, (64, 64)).save(folder / "control" / "1_2.png")
    return folder


def prepared(folder, tmp_path, shows, **values):
    settings = {"resolution": 64, "bucket_step": 32, "batch_size": 3, **values}
    plan = Plan(Dataset(scan(folder, SubsetConfig("input/x", **settings))), 5)
    codec, texts = Averages(), Eyes()
    encoded = EncodedDataset(plan.dataset, 5, codec, texts, TensorCache(tmp_path / "cache", 2**30), shows)
    encoded.prepare(work_of(plan, 4, shows), lambda done: None)
    return plan, encoded, codec, texts


def of_first_epochs(plan, encoded, epochs=4):
    """(name of the picture, its conditioning) for every sighting."""
    for epoch in range(epochs):
        for batch in plan.epoch_batches(epoch):
            samples = [plan.dataset.subsets[batch.subset].samples[i] for i in batch.samples]
            yield from zip([s.path.stem for s in samples], encoded.conditionings(batch), strict=True)


def test_control_pictures_come_with_the_caption_in_their_order_and_own_size(folder, tmp_path):
    plan, encoded, codec, texts = prepared(folder, tmp_path, Controls(shown=True))
    calls = len(codec.calls), texts.calls
    found = dict(of_first_epochs(plan, encoded))
    assert (len(codec.calls), texts.calls) == calls, "all was encoded ahead"
    shapes = {name: [tuple(latent.shape) for latent in references.listed(text)] for name, text in found.items()}
    # 100 x 52 pixels become 96 x 48, six cells of eight high.
    assert shapes == {"0": [(1, 3, 6, 12)], "1": [(1, 3, 8, 8), (1, 3, 8, 8)], "2": []}
    left = [latent[0, 0, 0, 0].item() for latent in references.listed(found["1"])]
    assert left == pytest.approx([51 / 255, 102 / 255], abs=1e-6)
    assert found["0"]["cond"].shape == (1, 1, 1), "an encoder without eyes reads the text alone"


def test_an_encoder_that_sees_is_shown_them_with_each_caption(folder, tmp_path):
    plan, encoded, _, texts = prepared(folder, tmp_path, Controls(shown=True, seen=True, method="index"))
    before = texts.calls
    found = dict(of_first_epochs(plan, encoded))
    assert texts.calls == before
    assert found["1"]["cond"].flatten().tolist() == pytest.approx([len("make it blue, very"), 0.2, 0.4], abs=0.01)
    assert found["2"]["cond"].numel() == 1
    assert found["1"][references.METHOD] == "index" and references.METHOD not in found["2"]


def test_a_mirrored_picture_has_mirrored_control_pictures(folder, tmp_path):
    plan, encoded, codec, texts = prepared(folder, tmp_path, Controls(shown=True, seen=True), flip=True)
    calls = len(codec.calls), texts.calls
    left = {
        round(references.listed(text)[0][0, 0, 0, 0].item(), 3) for name, text in of_first_epochs(plan, encoded) if name == "0"
    }
    assert left == {0.0, 1.0}
    for epoch in range(4):
        for batch in plan.epoch_batches(epoch):
            latents, views, _ = encoded.latents(batch)
            for latent, shown, text in zip(latents, views, encoded.conditionings(batch), strict=True):
                for control in references.listed(text):
                    assert (control[0, 0, 0, 0] > control[0, 0, 0, -1]) == shown.flipped == (latent[0, 0, 0] > latent[0, 0, -1])
    assert (len(codec.calls), texts.calls) == calls


def test_a_model_that_reads_none_is_shown_none(folder, tmp_path):
    plan, encoded, codec, _ = prepared(folder, tmp_path, Controls())
    assert sum(codec.calls) == 3
    assert not any(references.listed(text) for _, text in of_first_epochs(plan, encoded, 1))


def test_where_they_have_to_be_as_large_as_their_picture_they_are(folder, tmp_path):
    plan, encoded, *_ = prepared(folder, tmp_path, Controls(shown=True, as_large=True))
    found = dict(of_first_epochs(plan, encoded, 1))
    assert references.listed(found["0"])[0].shape == (1, 3, 8, 8)


def test_while_the_encoder_learns_it_sees_them_in_every_step(folder, tmp_path):
    plan, encoded, *_ = prepared(folder, tmp_path, Controls(shown=True, seen=True))
    seen = []

    def live(text, pictures):
        seen.append((text, len(pictures)))
        return {"cond": torch.zeros(1, 1, 1)}

    encoded.live = live
    (batch,) = plan.epoch_batches(0)
    texts = encoded.conditionings(batch)
    assert sorted(count for _, count in seen) == [0, 1, 2]
    assert sorted(len(references.listed(text)) for text in texts) == [0, 1, 2]


def test_what_a_model_is_held_to_is_read_ahead_beside_each_picture_even_where_captions_are_not(folder, tmp_path):
    """A text encoder that learns would read it otherwise in every step."""
    shows = Controls(shown=True, seen=True)
    plan, encoded, _, texts = prepared(folder, tmp_path, shows)
    work = work_of(plan, 4, shows, ["a house"]).reading(["a house"], captions=False)
    assert {one.text for one in work.texts} == {"a house"} and sorted(len(one.seen) for one in work.texts) == [0, 1, 2]
    encoded.prepare(work, lambda done: None)
    before = texts.calls
    (batch,) = plan.epoch_batches(0)
    held = encoded.held("a house", batch)
    assert texts.calls == before and sorted(text["cond"].numel() for text in held) == [1, 2, 3]
    assert sorted(len(references.listed(text)) for text in held) == [0, 1, 2]


@given(st.integers(1, 9000), st.integers(1, 9000), st.booleans())
def test_the_size_of_a_control_picture(width, height, flipped):
    shown = whole(Sample(None, width, height, None, "key"), flipped)
    across, down = shown.size
    assert across % STEP == down % STEP == 0 and across > 0 and down > 0
    assert shown.scaled == shown.size and shown.crop == (0, 0) and shown.flipped == flipped
    if width * height <= PIXELS:
        assert abs(across - width) <= max(STEP / 2, STEP - width) and abs(down - height) <= max(STEP / 2, STEP - height)
    elif min(width, height) > 64:
        assert across * down <= PIXELS * 1.15


@pytest.mark.parametrize(
    ("picture", "controls", "told"),
    [
        ((512, 512), [(512, 512)], []),
        ((512, 512), [(540, 512)], []),
        ((512, 512), [(512, 512), (1024, 256)], []),  # a second one is something else, which has a shape of its own
        ((512, 512), [(1024, 512)], ["another shape"]),
        ((768, 512), [(512, 768)], ["another shape"]),
        ((512, 512), [(1024, 1024)], ["much larger"]),
        ((512, 512), [(5000, 5000)], ["much larger"]),
        ((512, 512), [(256, 256)], ["much smaller"]),
        ((512, 512), [], []),
    ],
)
def test_a_pair_of_unlike_pictures_is_named(picture, controls, told):
    shown = tuple(Sample(Path(f"control/{i}.png"), *size, None, f"c{i}") for i, size in enumerate(controls))
    one = Sample(Path("cat.png"), *picture, "a cat", "key", controls=shown)
    found = remarks(Subset(SubsetConfig("input/x", resolution=512), (one, one), 1))
    assert len(found) == len(told) and all(what in said for what, said in zip(told, found, strict=True)), found
    for said in found:
        assert "(2): cat.png (" in said and f"{picture[0]} x {picture[1]}" in said


def test_before_a_run_the_most_that_is_shown_beside_a_picture_is_known(tmp_path):
    """As large as in training, by headers alone."""
    sizes = {"control/1.png": (640, 320), "control/2.png": (96, 96), "control/2_2.png": (3000, 1500), "control/3.png": (200, 200)}
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    (tmp_path / "control").mkdir()
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / name)
    source = SubsetSource(SubsetConfig("input/x", resolution=64), tmp_path, tmp_path, tmp_path / "index.json")
    (subset,) = scan(tmp_path, SubsetConfig("input/x", resolution=64))
    shown = [tuple(whole(one).size for one in sample.controls) for sample in subset.samples]
    assert steps_ahead.controls([source]) == max(shown, key=lambda group: sum(w * h for w, h in group)) == ((96, 96), (1456, 720))
    assert steps_ahead.controls([]) == ()


@given(st.integers(64, 4000), st.integers(64, 4000))
def test_fixed_shapes_are_those_of_the_hosts_node(comfyui, width, height):
    nodes = pytest.importorskip("comfy_extras.nodes_joyimage")
    assert {(across, down) for down, across in nodes.BUCKETS_1024} == set(SHAPES)
    down, across = nodes._find_best_bucket(height, width)
    found = Controls(True, True, in_shapes=True)
    sample = Sample(Path("1.png"), 64, 64, "", "a", controls=(Sample(Path("c.png"), width, height, None, "c"),))
    target = whole(sample)
    for shown in (found.of(sample, target), found.seen_with(sample, target)):
        ((_, view),) = shown
        assert view.size == (across, down) and all(kept <= scaled for kept, scaled in zip(view.size, view.scaled, strict=True))


@pytest.mark.parametrize("size", [(300, 200), (200, 420), (128, 128)])
def test_a_control_picture_in_a_fixed_shape_is_the_hosts(comfyui, size):
    """The same part of it; the host's own resampling is another, which a smooth picture hardly shows."""
    nodes = pytest.importorskip("comfy_extras.nodes_joyimage")
    coarse = np.random.default_rng(3).integers(0, 256, (4, 4, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    pixels = to_unit(torch.from_numpy(np.array(picture)))[None]
    theirs = nodes._resize_reference(pixels)
    shows = Controls(True, True, in_shapes=True)
    pictures = prompting.ControlPictures(None, shows, [(pixels,)])
    (seen,) = pictures.seen(0)
    assert seen.shape == theirs.shape == pictures._sized(pixels).shape
    assert (seen - theirs).abs().mean() < 0.01
