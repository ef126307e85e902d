"""Real runs on what stock nodes made: the same losses as on the folder that it came from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from lora_atelier.training import host, job
from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, SubsetConfig, TrainingConfig
from lora_atelier.training.dataset import encoded, from_nodes, precomputed
from lora_atelier.training.dataset.cache import CACHE_LIMIT, TensorCache
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset, Subset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from PIL import Image

from ...conftest import KERNELS_DIFFER

SIZES = ((64, 64), (96, 32), (64, 64))
# Sixty words are more than the 75 tokens that one part of a CLIP encoding holds, so the batch has encodings of two lengths.
CAPTIONS = ("a red square", "a blue circle", "green " * 90)
CONFIG = SubsetConfig("input/shapes", resolution=64, batch_size=2, bucket_step=32)


@pytest.fixture(autouse=True)
def fresh_folders(tmp_path, monkeypatch):
    for name in ("runs", "loras", "cache"):
        monkeypatch.setattr(host, f"{name}_folder", lambda name=name: tmp_path / name)


@pytest.fixture
def folder(tmp_path, comfyui, monkeypatch):
    """Three captioned pictures of 8 bits, each of the size of a bucket, where the stock loader looks."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    folder = tmp_path / "shapes"
    folder.mkdir()
    stream = np.random.default_rng(0)
    for i, ((width, height), caption) in enumerate(zip(SIZES, CAPTIONS, strict=True)):
        small = Image.fromarray(stream.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


def stock(folder):
    from comfy_extras.nodes_dataset import LoadImageTextDataSetFromFolderNode

    images, texts = LoadImageTextDataSetFromFolderNode.execute(folder.name).result
    order = [texts.index(caption.strip()) for caption in CAPTIONS]
    return [images[i] for i in order], [texts[i] for i in order]


def losses(t, dataset, name):
    recipe = TrainingConfig(
        name, NetworkConfig(rank=2, alpha=1.0), OptimizerConfig(learning_rate=1e-2), length=LengthConfig(epochs=3), seed=7
    )
    preview = job.Preview("", "", 0, 1.0, "euler", "normal", 0)
    with torch.inference_mode():
        return job.run_training(t.model, t.text, t.codec, dataset, recipe, preview=preview, graph={}).losses


def stored(t, folder, cache) -> Dataset:
    """What the stock node makes of the folder, as a dataset."""
    from comfy_extras.nodes_dataset import MakeTrainingDataset

    with torch.inference_mode():
        images, texts = stock(folder)
        latents, conditioning = MakeTrainingDataset.execute(images, [t.codec.vae], [t.text.clip], texts).result
        samples = precomputed.store(latents, conditioning, cache)
    return Dataset((Subset(dataclasses.replace(CONFIG, folder="nodes/latents"), samples, 1),))


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_pictures_and_latents_from_nodes_train_as_the_folder_does(tiny, folder, tmp_path, monkeypatch, name):
    # One picture at a time, as the stock node encodes them.
    for most in ("PIXELS_ON_CPU", "PIXELS_AT_ONCE"):
        monkeypatch.setattr(encoded, most, 1)
    t = tiny(name)
    expected = losses(t, Dataset(scan(folder, CONFIG)), "folder")
    assert len(set(expected)) == 6 and all(loss > 0 for loss in expected)
    with torch.inference_mode():
        images, texts = stock(folder)
        subset = from_nodes.subset_of(images, texts, CONFIG, tmp_path / "pictures")
    found = losses(t, Dataset((subset,)), "images")
    assert found == (pytest.approx(expected, rel=1e-5) if KERNELS_DIFFER else expected)
    ready = stored(t, folder, TensorCache(host.cache_folder(), CACHE_LIMIT))
    monkeypatch.setattr(host.PictureCodec, "encode", None)  # pictures are not encoded again
    assert losses(t, ready, "latents") == pytest.approx(expected, rel=1e-5)


def test_latents_of_another_model_are_refused_before_anything_runs(tiny, folder):
    ready = stored(tiny("sd15"), folder, TensorCache(host.cache_folder(), CACHE_LIMIT))
    with pytest.raises(AtelierError, match="latents: they have 4 channels and this model's have 16"):
        losses(tiny("sd3"), ready, "wrong")
    assert not (host.loras_folder() / "wrong").exists()


def test_what_the_cache_has_lost_is_named(tiny, folder):
    t, cache = tiny("sd3"), TensorCache(host.cache_folder(), CACHE_LIMIT)
    ready = stored(t, folder, cache)
    cache.path(ready.subsets[0].samples[1].ready.text).unlink()
    with pytest.raises(AtelierError, match="latents: what Dataset From Nodes had stored is no longer in the cache"):
        losses(t, ready, "lost")


def test_everything_a_conditioning_holds_comes_back(tmp_path):
    stream = torch.Generator().manual_seed(0)
    extras = {
        "pooled_output": torch.randn(1, 4, generator=stream), "attention_mask": torch.ones(1, 5, dtype=torch.int64),
        "guidance": 3.5, "width": 1024, "flag": True, "nothing": None, "half": torch.randn(2, 3, generator=stream).bfloat16(),
    }  # fmt: skip
    conditioning = [[torch.randn(1, 5, 8, generator=stream), extras]]
    cache = TensorCache(tmp_path, 2**30)
    samples = precomputed.store([{"samples": torch.randn(2, 4, 8, 8, generator=stream)}], [conditioning], cache)
    assert samples[0].ready.text == samples[1].ready.text and samples[0].ready.latent != samples[1].ready.latent
    dataset = Dataset((Subset(SubsetConfig("nodes/latents", batch_size=2), samples, 1),))
    reader = encoded.EncodedDataset(dataset, 0, Nobody(), Nobody(), cache)
    batch = Plan(dataset, 0).batch(0)
    assert len(encoded.work_of(Plan(dataset, 0), 3).pictures) == 0
    for told in reader.conditionings(batch):
        assert told.keys() == {"cond", *extras} - {"nothing"}
        assert [type(told[name]) for name in ("guidance", "width", "flag")] == [float, int, bool]
        assert (told["guidance"], told["width"], told["flag"]) == (3.5, 1024, True)
        for name in ("pooled_output", "attention_mask", "half"):
            assert torch.equal(told[name], extras[name]) and told[name].dtype == extras[name].dtype


class Nobody:
    """An encoder that must not be asked."""

    def identity(self) -> str:
        return "nobody"

    def reading_of(self, _text: str) -> tuple[str, ...]:
        return ()


def test_the_fingerprint_knows_latents_and_conditioning(tmp_path):
    cache = TensorCache(tmp_path, 2**30)

    def fingerprint(latent: float, text: float) -> str:
        latents = [{"samples": torch.full((1, 4, 8, 8), latent)}]
        samples = precomputed.store(latents, [[[torch.full((1, 2, 3), text), {}]]], cache)
        return Dataset((Subset(SubsetConfig("nodes/latents"), samples, 1),)).fingerprint

    assert len({fingerprint(0, 0), fingerprint(1, 0), fingerprint(0, 1)}) == 3
    assert fingerprint(0, 0) == fingerprint(0, 0)


def test_sizes_that_a_conditioning_names_are_the_ones_that_count(tiny):
    """SDXL's size conditioning, as CLIPTextEncodeSDXL gives it."""
    t = tiny("sdxl_unet")
    text, x = t.conditioning(0), torch.zeros(1, 4, 8, 8)
    size = {"width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64}
    own = {**size, "width": 1024, "crop_h": 32}
    with torch.inference_mode(False), torch.no_grad():
        expected = t.model.condition(text, x, own)["y"].cond
        assert torch.equal(t.model.condition({**text, **own}, x, size)["y"].cond, expected)
        assert not torch.equal(t.model.condition(text, x, size)["y"].cond, expected)
