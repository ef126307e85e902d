"""Encoding ahead: each thing once, several at a time, continued where it stopped, and nothing left for the loop to encode."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from unittest.mock import PropertyMock

import numpy as np
import pytest
import torch
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import encoded as encoding
from lora_atelier.training.dataset.cache import TensorCache
from lora_atelier.training.dataset.encoded import EncodedDataset, work_of
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import refresh_captions, scan
from lora_atelier.training.errors import AtelierError, NotFinite
from PIL import Image
from safetensors.torch import load_file

from ...conftest import GPU


class Averages:
    """A codec whose latents are the mean colours of 8 x 8 pixels; notes how many pictures came at once."""

    device = torch.device("cpu")

    def __init__(self, film: bool = False):
        self.calls: list[int] = []
        self.film = film

    def at_once(self, width, height):
        return 4

    def encode(self, pixels):
        assert pixels.device.type == self.device.type and pixels.dtype == torch.float32
        self.calls.append(len(pixels))
        latents = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8).cpu()
        return latents[:1, :, None] if self.film else latents

    def identity(self):
        return "averages"


class Lengths:
    """A text encoder that knows how long a caption is."""

    def __init__(self):
        self.calls: list[str] = []

    def encode(self, text):
        self.calls.append(text)
        return {"cond": torch.full((1, 2, 3), float(len(text)))}

    def encode_all(self, texts):
        return map(self.encode, texts)

    def identity(self):
        return "lengths"

    def reading_of(self, text):
        return ()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        size = (64, 64) if i < 7 else (128, 64)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"ohwx, part {i}, red, round")
    return folder


def dataset(folder, **values):
    return Dataset(scan(folder, SubsetConfig("input/x", **{"resolution": 64, "bucket_step": 32, "batch_size": 3, **values})))


def prepared(folder, tmp_path, epochs=3, advance=lambda done: None, film=False, **values):
    plan = Plan(dataset(folder, **values), 5)
    codec, texts = Averages(film), Lengths()
    encoded = EncodedDataset(plan.dataset, 5, codec, texts, TensorCache(tmp_path / "cache", 2**30))
    encoded.prepare(work_of(plan, epochs), advance)
    return plan, encoded, codec, texts


def test_pictures_of_one_size_go_together_and_a_second_run_encodes_nothing(folder, tmp_path):
    seen: list[int] = []
    _, _, codec, texts = prepared(folder, tmp_path, advance=seen.append)
    assert sorted(codec.calls) == [3, 7]
    assert sorted(texts.calls) == sorted(["", *(f"ohwx, part {i}, red, round" for i in range(10))])
    assert seen == list(range(1, 22))
    _, _, codec, texts = prepared(folder, tmp_path, advance=seen.append)
    assert codec.calls == [] and texts.calls == [] and seen == [*range(1, 22), *range(1, 22)]


def test_a_limit_on_pixels_is_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "PIXELS_ON_CPU", 2 * 64 * 64)
    _, _, codec, _ = prepared(folder, tmp_path)
    # Seven of 64 x 64, and three of 96 x 32, of which two are three quarters of the limit and three are above it.
    assert sorted(codec.calls) == [1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"flip": True, "crop": "random"},
        {"shuffle_captions": True, "keep_tokens": 1, "tag_dropout": 0.2, "caption_dropout": 0.2, "repeats": 3},
        {"validation_share": 0.3, "flip": True, "caption_prefix": "new, "},
    ],
)
def test_the_loop_never_needs_an_encoder(folder, tmp_path, values):
    plan, encoded, codec, texts = prepared(folder, tmp_path, epochs=7, **values)
    before = len(codec.calls), len(texts.calls)
    steps = [plan.batch(step) for step in range(7 * plan.steps_per_epoch)]
    seen = set()
    for batch in [*steps, *plan.validation, *plan.training_share]:
        latents, views, mask = encoded.latents(batch)
        assert latents.shape == (len(batch.samples), 3, batch.size[1] // 8, batch.size[0] // 8) and mask is None
        for index, shown, latent in zip(batch.samples, views, latents, strict=True):
            pixels = shown.pixels(plan.dataset.subsets[batch.subset].samples[index].path)
            assert torch.allclose(latent, Averages().encode(pixels[None])[0], atol=1e-6), "the right picture in the right place"
            seen.add(shown.flipped)
        for caption in encoded.captions(batch):
            assert encoded.text(caption)["cond"][0, 0, 0] == len(caption)
    assert (len(codec.calls), len(texts.calls)) == before
    assert seen == ({True, False} if values.get("flip") else {False})


def test_a_cancelled_preparation_goes_on_where_it_stopped(folder, tmp_path):
    class Cancelled(Exception):
        pass

    def cancel(done):
        if done == 8:
            raise Cancelled

    with pytest.raises(Cancelled):
        prepared(folder, tmp_path, advance=cancel)
    _, _, codec, _ = prepared(folder, tmp_path)
    assert sum(codec.calls) in (0, 3), "one bucket of 7 and one of 3; what was encoded before the cancel is there"


def test_masks_come_at_latent_size_and_unmasked_pictures_count_whole(folder, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(folder / "0.mask.png")
    plan, encoded, _, _ = prepared(folder, tmp_path, masks="files", batch_size=7)
    batch = next(b for b in plan.epoch_batches(0) if b.size == (64, 64))
    _, _, masks = encoded.latents(batch)
    assert masks is not None and masks.shape == (7, 1, 8, 8)
    for index, one in zip(batch.samples, masks, strict=True):
        expected = torch.ones(8, 8)
        if index == 0:
            expected[:, 4:] = 0
        assert torch.equal(one[0], expected)


def test_a_video_codec_gets_its_pictures_one_by_one(folder, tmp_path):
    plan, encoded, codec, _ = prepared(folder, tmp_path, film=True)
    assert codec.calls.count(1) == 10
    latents, _, _ = encoded.latents(plan.batch(0))
    assert latents.ndim == 5 and latents.shape[2] == 1


def test_a_changed_picture_caption_or_encoder_is_noticed(folder, tmp_path):
    prepared(folder, tmp_path)
    Image.new("RGB", (64, 64), "blue").save(folder / "0.png")
    (folder / "1.txt").write_text("new")
    _, _, codec, texts = prepared(folder, tmp_path)
    assert codec.calls == [1] and texts.calls == ["new"]


def test_a_damaged_cache_file_is_made_again_by_the_loop(folder, tmp_path):
    plan, encoded, codec, _ = prepared(folder, tmp_path)
    for path in (tmp_path / "cache").glob("??/*.safetensors"):
        path.write_bytes(b"damaged")
    latents, _, _ = encoded.latents(plan.batch(0))
    assert latents.isfinite().all() and codec.calls[-1] == 1


def test_a_picture_that_vanished_is_named(folder, tmp_path):
    plan = Plan(dataset(folder), 0)
    (folder / "3.png").unlink()
    encoded = EncodedDataset(plan.dataset, 0, Averages(), Lengths(), TensorCache(tmp_path / "cache", 2**30))
    with pytest.raises(AtelierError, match=r"3\.png"):
        encoded.prepare(work_of(plan, 1), lambda done: None)


FRESH = {"variants": 0, "crop": "random", "flip": True}


def test_pictures_that_are_encoded_in_their_step_are_never_cached(folder, tmp_path):
    plan, encoded, codec, texts = prepared(folder, tmp_path, validation_share=0.3, **FRESH)
    assert work_of(plan, 3).pictures == () and codec.calls == [] and texts.calls
    texts_only = sorted((tmp_path / "cache").glob("??/*"))
    for batch in [*(plan.batch(step) for step in range(3 * plan.steps_per_epoch)), *plan.validation]:
        latents, views, _ = encoded.latents(batch)
        for index, shown, latent in zip(batch.samples, views, latents, strict=True):
            pixels = shown.pixels(plan.dataset.subsets[batch.subset].samples[index].path)
            assert torch.allclose(latent, Averages().encode(pixels[None])[0], atol=1e-6)
    assert sorted((tmp_path / "cache").glob("??/*")) == texts_only


def test_every_sighting_has_its_own_crop_and_depends_on_nothing_else(folder, tmp_path):
    plan, encoded, _, _ = prepared(folder, tmp_path, **FRESH)
    steps = list(range(6 * plan.steps_per_epoch))
    seen = {step: encoded.latents(plan.batch(step)) for step in steps}
    wide = [
        (index, shown.crop)
        for step in steps
        for index, shown in zip(plan.batch(step).samples, seen[step][1], strict=True)
        if shown.scaled != shown.size
    ]
    assert len(wide) > 10 and len(set(wide)) > len(wide) / 2, "few places come twice by chance, and none in turn"
    again = EncodedDataset(plan.dataset, 5, Averages(), Lengths(), TensorCache(tmp_path / "other", 2**30))
    for step in reversed(steps):
        latents, views, _ = again.latents(plan.batch(step))
        assert views == seen[step][1] and torch.equal(latents, seen[step][0])


def test_a_view_is_the_same_cached_or_encoded_in_its_step(folder, tmp_path):
    plan, encoded, _, _ = prepared(folder, tmp_path, **{**FRESH, "variants": 4})
    fresh, in_step, _, _ = prepared(folder, tmp_path, **FRESH)
    for step in range(4 * plan.steps_per_epoch):
        (cached, views, _), (new, new_views, _) = encoded.latents(plan.batch(step)), in_step.latents(fresh.batch(step))
        assert views == new_views and torch.allclose(cached, new, atol=1e-6), "the first four places are the same"


def test_one_picture_in_two_subsets_keeps_the_captions_of_each(folder):
    """A subset without captions beside one with captions, both of the same folder."""
    both = dataset(folder, captions=False) + dataset(folder)
    again = refresh_captions(both)
    assert [s.samples[2].caption for s in again.subsets] == ["", "ohwx, part 2, red, round"]


# Numbers ------------------------------------------------------------------------------------------------------------------


class Broken(Averages):
    """A VAE in a number format that is too small for one picture."""

    def __init__(self, odd: int, sound: bool = False):
        super().__init__()
        self.odd, self.sound = odd, sound

    def encode(self, pixels):
        latents = super().encode(pixels)
        for latent, picture in zip(latents, pixels, strict=True):
            if not self.sound and round(float(picture[0, 0, 0]) * 255) == self.odd:
                latent[0, 0, 0] = float("nan")
        return latents


@pytest.mark.parametrize("variants", [4, 0])
def test_a_vae_that_gives_no_numbers_names_the_picture_and_leaves_nothing(folder, tmp_path, variants):
    odd = Image.open(folder / "4.png").getpixel((0, 0))[0]
    assert [Image.open(folder / f"{i}.png").getpixel((0, 0))[0] for i in range(7)].count(odd) == 1
    values = {"crop": "random"} if not variants else {}
    plan = Plan(dataset(folder, variants=variants, **values), 5)
    cache = TensorCache(tmp_path / "cache", 2**30)

    def encoded(codec) -> EncodedDataset:
        made = EncodedDataset(plan.dataset, 5, codec, Lengths(), cache)
        made.prepare(work_of(plan, 1), lambda done: None)
        for step in range(plan.steps_per_epoch):
            assert made.latents(plan.batch(step))[0].isfinite().all()
        return made

    with pytest.raises(NotFinite, match=r"vae: .* NaN or infinite numbers for .*4\.png.*--fp32-vae"):
        encoded(Broken(odd))
    stored = list((tmp_path / "cache").glob("*/*.safetensors"))
    assert all(tensor.isfinite().all() for path in stored for tensor in load_file(path).values())
    encoded(Broken(odd, sound=True))


class Speechless(Lengths):
    def encode(self, text):
        found = super().encode(text)
        return {**found, "pooled_output": torch.tensor([[float("inf") if "part 3" in text else 1.0]])}


def test_a_text_encoder_that_gives_no_numbers_names_the_caption_and_leaves_nothing(folder, tmp_path):
    plan = Plan(dataset(folder), 5)
    cache = TensorCache(tmp_path / "cache", 2**30)
    made = EncodedDataset(plan.dataset, 5, Averages(), Speechless(), cache)
    for ask in (lambda: made.prepare(work_of(plan, 1), lambda done: None), lambda: made.text("ohwx, part 3, red, round")):
        with pytest.raises(NotFinite, match=r"clip: .* for the text 'ohwx, part 3, red, round'.*--fp32-text-enc"):
            ask()
    assert made.text("ohwx, part 1, red, round")["cond"].isfinite().all()
    stored = list((tmp_path / "cache").glob("*/*.safetensors"))
    assert stored and all(tensor.isfinite().all() for path in stored for tensor in load_file(path).values())


# Beside a GPU -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(monkeypatch):
    """What is done where the encoder has a GPU: threads read ahead and write behind. On one where there is one."""
    monkeypatch.setattr(EncodedDataset, "_on_cpu", PropertyMock(return_value=False))
    if GPU:
        monkeypatch.setattr(Averages, "device", torch.device("cuda"))
    before = threading.active_count()
    yield
    assert threading.active_count() == before, "no thread is left"


VARIED = {"flip": True, "crop": "random", "variants": 3, "masks": "files", "validation_share": 0.2}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("??/*.safetensors")}


def test_the_cache_holds_the_same_bytes_with_and_without_threads(folder, tmp_path, monkeypatch, request):
    Image.new("L", (64, 64), 40).save(folder / "2.mask.png")
    seen = {}
    for kind in ("alone", "beside"):
        if kind == "beside":
            request.getfixturevalue("beside")
        advanced: list[int] = []
        plan, _, codec, _ = prepared(folder, tmp_path / kind, advance=advanced.append, **VARIED)
        assert advanced == list(range(1, len(work_of(plan, 3)) + 1))
        seen[kind] = contents(tmp_path / kind / "cache")
        assert (max(codec.calls) <= 4) == (kind == "beside")
    assert seen["alone"] == seen["beside"] and len(seen["alone"]) > 30


@pytest.mark.parametrize("values", [FRESH, {**FRESH, "masks": "files"}])
def test_pictures_that_are_encoded_in_their_step_are_read_in_threads(beside, folder, tmp_path, values):
    Image.new("L", (64, 64), 255).save(folder / "0.mask.png")
    plan, encoded, _, _ = prepared(folder, tmp_path, **values)
    for step in range(2 * plan.steps_per_epoch):
        batch = plan.batch(step)
        latents, views, _ = encoded.latents(batch)
        for index, shown, latent in zip(batch.samples, views, latents, strict=True):
            pixels = shown.pixels(plan.dataset.subsets[batch.subset].samples[index].path)
            expected = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 0), 8)
            assert torch.allclose(latent, expected, atol=1e-6)


@pytest.mark.parametrize("stop_at", [1, 4, 9, 12, 20])
def test_a_cancel_beside_a_gpu_keeps_what_was_encoded_and_ends_everything(beside, folder, tmp_path, stop_at):
    class Cancelled(Exception):
        pass

    def cancel(done):
        if done == stop_at:
            raise Cancelled

    with pytest.raises(Cancelled):
        prepared(folder, tmp_path, advance=cancel)
    assert not list((tmp_path / "cache").glob("??/*.partial"))
    stored = len(contents(tmp_path / "cache"))
    assert stored >= stop_at, "what was told as done is there"
    _, _, codec, texts = prepared(folder, tmp_path)
    assert sum(codec.calls) + len(texts.calls) == 21 - stored


def test_nothing_is_ready_before_it_is_written(beside, folder, tmp_path, monkeypatch):
    real = TensorCache.put
    monkeypatch.setattr(TensorCache, "put", lambda self, key, tensors: (time.sleep(0.02), real(self, key, tensors)))
    plan, _, _, _ = prepared(folder, tmp_path)
    assert len(contents(tmp_path / "cache")) == len(work_of(plan, 3)) == 21


def test_a_disk_that_is_full_behind_the_encoder_is_told_and_nothing_goes_on(beside, folder, tmp_path, monkeypatch):
    real, written = os.replace, []

    def replace(source, target):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(target)
        real(source, target)

    with monkeypatch.context() as patched, pytest.raises(AtelierError, match=r"cache: .* \(No space left on device\)"):
        plan = Plan(dataset(folder), 5)
        made = EncodedDataset(plan.dataset, 5, Averages(), Lengths(), TensorCache(tmp_path / "cache", 2**30))
        patched.setattr(os, "replace", replace)
        made.prepare(work_of(plan, 3), lambda done: None)
    assert len(contents(tmp_path / "cache")) == 3 and not list((tmp_path / "cache").glob("??/*.partial"))
    prepared(folder, tmp_path)
    assert len(contents(tmp_path / "cache")) == 21


@pytest.mark.parametrize("name", ["3.png", "9.png"])
def test_a_broken_picture_is_named_beside_a_gpu_too(beside, folder, tmp_path, name):
    plan = Plan(dataset(folder), 0)
    (folder / name).write_bytes(b"no picture")
    made = EncodedDataset(plan.dataset, 0, Averages(), Lengths(), TensorCache(tmp_path / "cache", 2**30))
    with pytest.raises(AtelierError, match=name.replace(".", r"\.")):
        made.prepare(work_of(plan, 1), lambda done: None)


def test_a_picture_without_numbers_is_named_beside_a_gpu_too(beside, folder, tmp_path):
    odd = Image.open(folder / "4.png").getpixel((0, 0))[0]
    plan = Plan(dataset(folder), 5)
    made = EncodedDataset(plan.dataset, 5, Broken(odd), Lengths(), TensorCache(tmp_path / "cache", 2**30))
    with pytest.raises(NotFinite, match=r"4\.png"):
        made.prepare(work_of(plan, 1), lambda done: None)
    stored = list((tmp_path / "cache").glob("*/*.safetensors"))
    assert all(tensor.isfinite().all() for path in stored for tensor in load_file(path).values())


KILLED = """
import sys, types
from pathlib import Path
from unittest.mock import PropertyMock
package = types.ModuleType("lora_atelier"); package.__path__ = [sys.argv[1]]; sys.modules["lora_atelier"] = package
import torch
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.cache import TensorCache
from lora_atelier.training.dataset.encoded import EncodedDataset, work_of
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan

class Codec:
    device = torch.device("cpu")
    def at_once(self, width, height): return 2
    def identity(self): return "codec"
    def encode(self, pixels): return pixels.repeat(1, 4, 4, 1).movedim(-1, 1)

class Texts:
    def identity(self): return "texts"
    def reading_of(self, text): return ()
    def encode_all(self, texts): return ({"cond": torch.ones(1, 77, 768)} for _ in texts)

EncodedDataset._on_cpu = PropertyMock(return_value=False)
found = Dataset(scan(Path(sys.argv[2]), SubsetConfig("input/x", resolution=64, bucket_step=32, flip=True)))
made = EncodedDataset(found, 0, Codec(), Texts(), TensorCache(Path(sys.argv[3]), 2**30))
def advance(done):
    print(done, flush=True)
while True:
    made.prepare(work_of(Plan(found, 0), 9), advance)
    for path in Path(sys.argv[3]).glob("??/*"):
        path.unlink()
"""


@pytest.mark.parametrize("lines", [1, 5, 16, 23])
def test_killed_at_any_moment_only_whole_files_bear_their_names(folder, tmp_path, root, lines):
    cache = TensorCache(tmp_path / "cache", 2**30)
    line = [sys.executable, "-c", KILLED, str(root), str(folder), str(cache.folder)]
    run = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(lines):
        assert run.stdout is not None and run.stdout.readline()
    run.kill()
    run.wait()
    for path in cache.folder.glob("??/*.safetensors"):
        found = cache.get(path.stem)
        assert found is not None and path.exists(), "none is damaged, for a damaged one is removed"
