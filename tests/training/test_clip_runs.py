"""Whole runs on clips of films: models of films between CLIP-L and a small video VAE, from files to LoRA files."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.config import LengthConfig, LossConfig, NetworkConfig, OptimizerConfig, SubsetConfig
from lora_atelier.training.dataset.cache import CACHE_LIMIT, TensorCache
from lora_atelier.training.dataset.encoded import EncodedDataset, work_of
from lora_atelier.training.dataset.images import to_unit
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from PIL import Image

from ..zoo.build import build
from ..zoo.recipes import Recipe, cond, hunyuan, wan
from .dataset.made_films import levels, write
from .test_job import Stop, fresh_folders, go, interrupt, recipe  # noqa: F401

WAN = Recipe("Wan 2.1, tiny", "WAN21_T2V", wan(text_dim=768), cond(768), loads=False)
HUNYUAN = Recipe(
    "HunyuanVideo, tiny", "HunyuanVideo",
    hunyuan(
        in_channels=16, out_channels=16, patch_size=[1, 2, 2], axes_dim=[16, 56, 56], vec_in_dim=768, guidance_embed=True,
        context_in_dim=768,
    ),
    cond(768, pooled_output=(1, 768)), loads=False,
)  # fmt: skip


def video_vae():
    """The host's VAE of Wan 2.1 with few channels and random weights.

    HunyuanVideo's has the same latent: 16 channels, four frames and 8 x 8 pixels a cell.
    """
    import comfy.sd
    from comfy.ldm.wan import vae

    made = vae.WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True],
        dropout=0.0,
    )  # fmt: skip
    stream, tensors = torch.Generator().manual_seed(5), {}
    for name, tensor in made.state_dict().items():
        noise = torch.randn(tensor.shape, generator=stream)
        one = name.endswith(("weight", "gamma")) and tensor.ndim != 1 and tensor.numel() > tensor.shape[0]
        norm = 1 + 0.1 * noise if name.endswith(("weight", "gamma")) else 0.02 * noise
        tensors[name] = noise / math.sqrt(tensor[0].numel()) if one else norm
    logging.disable(logging.WARNING)
    try:
        with torch.inference_mode():
            return comfy.sd.VAE(sd=tensors)
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def small_vae(comfyui):
    return host.PictureCodec(video_vae())


@pytest.fixture(scope="module", params=[WAN, HUNYUAN], ids=lambda one: one.name)
def videos(request, tiny, small_vae):
    return SimpleNamespace(model=build(request.param).model, text=tiny("sd15").text, codec=small_vae)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two films of 9 frames, one of 6, and a picture; all with captions."""
    folder = tmp_path_factory.mktemp("films")
    for name, count in (("a.mkv", 9), ("b.mp4", 9), ("c.mkv", 6)):
        write(folder / name, levels(count, (64, 64), seed=count))
    Image.fromarray(levels(1, (64, 64), seed=7)[0]).save(folder / "d.png")
    for stem in "abcd":
        (folder / f"{stem}.txt").write_text(f"a walk {stem}", encoding="utf-8")
    return folder


def clips(folder, frames="1, 5", **settings):
    return Dataset(scan(folder, SubsetConfig("input/films", resolution=64, bucket_step=32, clip_frames=frames, **settings)))


def of(name, **changes):
    values = {"length": LengthConfig(epochs=2), "network": NetworkConfig(rank=4, alpha=4.0), **changes}
    return recipe(name, **{"precision": "fp32", "optimizer": OptimizerConfig(learning_rate=5e-3), **values})


def test_a_cached_clip_is_what_the_hosts_vae_makes_of_its_frames(videos, folder):
    dataset = clips(folder)
    encoded = EncodedDataset(dataset, 0, videos.codec, videos.text, TensorCache(host.cache_folder(), CACHE_LIMIT))
    plan = Plan(dataset, 0)
    encoded.prepare(work_of(plan, 1), lambda *_: None)
    seen = set()
    for batch in plan.epoch_batches(0):
        latents, shown, mask = encoded.latents(batch)
        sample = dataset.subsets[0].samples[batch.samples[0]]
        pixels = to_unit(shown[0].levels(sample.path))
        with torch.inference_mode():
            wanted = videos.codec.vae.encode(pixels if pixels.ndim == 4 else pixels[None])
        assert torch.equal(latents, wanted.cpu().float()) and latents.shape == (1, 16, 1 + (sample.frames - 1) // 4, 8, 8)
        assert mask is None
        seen.add(sample.frames)
    assert seen == {1, 5}


def test_a_lora_is_learnt_from_clips_and_pictures(videos, folder):
    learnt = go(videos, clips(folder, batch_size=2), of("clips", length=LengthConfig(epochs=5)))
    losses = [row if isinstance(row, float) else row[-1] for row in learnt.losses]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])


def test_a_resumed_run_is_the_uninterrupted_one(videos, folder, interrupt, monkeypatch):  # noqa: F811
    dataset = clips(folder, clip_start="chunks", flip=True, crop="random")
    whole = go(videos, dataset, of("whole"))
    with monkeypatch.context() as patch:
        Stop(patch, 9, interrupt)
        with pytest.raises(type(interrupt)):
            go(videos, dataset, of("parted"))
    parted = go(videos, dataset, of("parted"))
    assert all(torch.equal(whole.tensors[k], parted.tensors[k]) for k in whole.tensors)


def test_encoding_in_every_step_and_masks(videos, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "a.mask.png")
    cached = go(videos, clips(tmp_path, masks="files"), of("cached"))
    fresh = go(videos, clips(tmp_path, masks="files", variants=0), of("fresh"))
    assert all(torch.equal(cached.tensors[k], fresh.tensors[k]) for k in cached.tensors)
    held = go(videos, clips(tmp_path, masks="files"), of("held", loss=LossConfig(mask_preservation=0.5)))
    assert any(not torch.equal(cached.tensors[k], held.tensors[k]) for k in cached.tensors)


def test_numbers_that_the_vae_would_cut_are_refused_with_the_nearest(videos, folder):
    with pytest.raises(AtelierError, match=r"clip frames: .* a clip of 6, .* Write (1 or )?5 or 9 in place of it\."):
        go(videos, clips(folder, "6"), of("wrong"))


def test_a_model_of_pictures_takes_no_clips(tiny, folder):
    with pytest.raises(AtelierError, match=r"clip frames: subset 1 \(input/films\) has clips of 5 frames, and a .* model draws"):
        go(tiny("sd3"), clips(folder), of("pictures"))
    go(tiny("sd3"), clips(folder, "1"), of("frames", length=LengthConfig(max_steps=1)))
