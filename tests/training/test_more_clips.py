"""Clips, pictures and films of video models whose VAEs pack more frames or larger squares: Wan 2.2 5B, LTX-Video, Mochi."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lora_atelier.training import host, job
from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, SubsetConfig
from lora_atelier.training.dataset.cache import CACHE_LIMIT, TensorCache
from lora_atelier.training.dataset.encoded import EncodedDataset, work_of
from lora_atelier.training.dataset.images import to_unit
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.objective.noise import NoiseLevelSampler
from PIL import Image

from ..zoo import texts
from ..zoo.build import build
from ..zoo.recipes import RECIPES, Recipe, wan
from . import small_vaes
from .dataset.made_films import levels, write
from .test_job import fresh_folders, go, recipe  # noqa: F401

READ = texts.T5["d_model"]
"""Width of the small text encoder's vectors."""


@dataclass(frozen=True)
class Kind:
    """One kind of video model."""

    name: str
    recipe: Recipe
    vae: Callable[[], Any]
    packed: int
    """Frames in a cell of the latent, but for the first one."""
    cell: int
    """Pixels in one."""
    channels: int
    empty: tuple[str, str]
    """The host's node that makes an empty latent: module and class."""

    @property
    def frames(self) -> tuple[int, int]:
        """The two smallest numbers of a clip."""
        return 1 + self.packed, 1 + 2 * self.packed


def named(name: str, **changes: Any) -> Recipe:
    found = next(one for one in RECIPES if one.name == name)
    return dataclasses.replace(found, config={**found.config, **changes}, loads=False)


KINDS = (
    Kind(
        "Wan 2.2 5B", named("Wan 2.2 5B, one frame", **wan(in_dim=48, out_dim=48, text_dim=READ)), small_vaes.wan22, 4, 16, 48,
        ("nodes_wan", "Wan22ImageToVideoLatent"),
    ),
    Kind(
        "LTX-Video", named("LTX-Video, one frame", caption_channels=READ), small_vaes.ltx, 8, 32, 128,
        ("nodes_lt", "EmptyLTXVLatentVideo"),
    ),
    Kind(
        "Mochi", named("Mochi, one frame", t5_feat_dim=READ), small_vaes.mochi, 6, 8, 12, ("nodes_mochi", "EmptyMochiLatentVideo")
    ),
)  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, id=kind.name, marks=[pytest.mark.all_models] if kind.name == "Mochi" else []) for kind in KINDS],
)
def films(request, comfyui) -> SimpleNamespace:
    kind = request.param
    reader = "T5 (Mochi)" if kind.name == "Mochi" else "T5 (LTX-Video)"
    clip = texts.build(next(one for one in texts.READERS if one.name == reader))
    return SimpleNamespace(
        kind=kind, model=build(kind.recipe).model, text=host.TextEncoder(clip), codec=host.PictureCodec(kind.vae())
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A film of 17 frames, one of 9, and a picture; all with captions."""
    folder = tmp_path_factory.mktemp("films")
    write(folder / "a.mkv", levels(17, (96, 64), seed=1))
    write(folder / "b.mkv", levels(9, (96, 64), seed=2))
    Image.fromarray(levels(1, (96, 64), seed=7)[0]).save(folder / "c.png")
    for stem in "abc":
        (folder / f"{stem}.txt").write_text(f"a walk {stem}", encoding="utf-8")
    return folder


def clips(folder, frames, **settings) -> Dataset:
    values = {"resolution": 64, "bucket_step": 32, "clip_frames": frames, **settings}
    return Dataset(scan(folder, SubsetConfig("input/films", **values)))


def stock(t, prompt: str, frames: int, steps: int) -> list[bytes]:
    """Every frame, by the nodes that come with ComfyUI."""
    import importlib

    import nodes

    module, name = t.kind.empty
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    more = {"vae": t.codec.vae} if name.startswith("Wan") else {}
    with torch.inference_mode():
        both = [t.text.clip.encode_from_tokens_scheduled(t.text.clip.tokenize(text)) for text in (prompt, "")]
        empty = node.execute(width=96, height=64, length=frames, batch_size=1, **more).args[0]
        [latent] = nodes.common_ksampler(t.model.patcher, 3, steps, 2.0, "euler", "simple", *both, empty)
        pixels = nodes.VAEDecode().decode(t.codec.vae, latent)[0]
    assert pixels.shape == (frames, 64, 96, 3)
    return [Image.fromarray(np.clip(255.0 * one.cpu().numpy(), 0, 255).astype(np.uint8)).tobytes() for one in pixels]


def test_a_cached_clip_is_what_the_stock_node_encodes(films, folder):
    import nodes

    kind, few = films.kind, films.kind.frames[0]
    dataset = clips(folder, f"1, {few}")
    encoded = EncodedDataset(dataset, 0, films.codec, films.text, TensorCache(host.cache_folder(), CACHE_LIMIT))
    plan = Plan(dataset, 0)
    encoded.prepare(work_of(plan, 1), lambda *_: None)
    seen = set()
    for batch in plan.epoch_batches(0):
        latents, shown, _ = encoded.latents(batch)
        sample = dataset.subsets[0].samples[batch.samples[0]]
        pixels = to_unit(shown[0].levels(sample.path))
        with torch.inference_mode():
            wanted = nodes.VAEEncode().encode(films.codec.vae, pixels if pixels.ndim == 4 else pixels[None])[0]["samples"]
        assert torch.equal(latents, wanted.cpu().float())
        cells = 1 + (sample.frames - 1) // kind.packed
        width, height = batch.size
        assert latents.shape == (1, kind.channels, cells, height // kind.cell, width // kind.cell)
        seen.add(sample.frames)
    assert seen == {1, few} and films.codec.downscale == kind.cell


def test_numbers_of_frames_are_asked_of_the_vae(films, folder):
    few, more = films.kind.frames
    assert films.codec.nearest_frames(few) == (few,) and films.codec.nearest_frames(more) == (more,)
    assert {few, more} <= set(films.codec.nearest_frames(few + 1))
    with pytest.raises(AtelierError, match=rf"clip of {few + 1}, and would leave the last ones out. Write .*{few} or {more}"):
        go(films, clips(folder, f"{few + 1}"), recipe("odd"))


def test_levels_are_drawn_for_all_frames_of_a_clip(films, folder, monkeypatch):
    real, seen = NoiseLevelSampler._levels, set()

    def levels_of(self, number, latent_size):
        seen.add(tuple(latent_size))
        return real(self, number, latent_size)

    monkeypatch.setattr(NoiseLevelSampler, "_levels", levels_of)
    go(films, clips(folder, f"{films.kind.frames[0]}", validation_share=0.5), recipe("levels", length=LengthConfig(epochs=1)))
    assert {size[:-2] for size in seen} == {(1,), (2,)}, "the picture has one"


def test_a_lora_is_learnt_from_clips_and_pictures_and_its_sample_is_the_stock_nodes_film(films, folder, tmp_path):
    few = films.kind.frames[0]
    before, plain = films.model.identity(), stock(films, "a fox", few, 2)
    config = recipe(
        "moves", precision="fp32", length=LengthConfig(epochs=6), network=NetworkConfig(rank=4, alpha=4.0),
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )  # fmt: skip
    sample = job.Preview("a fox", "", 2, 2.0, "euler", "simple", 3, 96, 64, frames=few, rate=12.0)
    learnt = go(films, clips(folder, f"1, {few}"), config, sample)
    losses = [row if isinstance(row, float) else row[-1] for row in learnt.losses]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    with Image.open(tmp_path / "runs" / "moves" / "samples" / "moves-000000.png") as still:
        assert still.convert("RGB").tobytes() == plain[(few - 1) // 2]
    assert films.model.identity() == before and stock(films, "a fox", few, 2) == plain


def test_ltx_is_told_the_frames_a_second_of_a_clip(films, folder):
    """As Lightricks' trainer tells it those of the film; a picture has the host's usual 25."""
    told = set()

    def look(_network, _given, named):
        told.add((named.get("frame_rate"), "frame_rate" in named))

    few, network = films.kind.frames[0], films.model.base.diffusion_model
    for name, rate, wanted in (("as-filmed", 0.0, 24.0), ("slower", 12.0, 12.0)):
        told.clear()
        handle = network.register_forward_pre_hook(look, with_kwargs=True)
        try:
            go(films, clips(folder, f"1, {few}", clip_rate=rate), recipe(name, length=LengthConfig(epochs=1)))
        finally:
            handle.remove()
        assert told == ({(25, True), (wanted, True)} if films.kind.name == "LTX-Video" else {(None, False)})
