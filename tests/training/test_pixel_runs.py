"""Whole runs of models that work on pixels: HiDream-O1, which reads the words itself and remembers them, and PixelDiT."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_atelier.training import host, job, regularisation
from lora_atelier.training.config import LengthConfig, NetworkConfig, NoiseConfig, OptimizerConfig, SubsetConfig
from lora_atelier.training.config.sampling import Sampling
from lora_atelier.training.dataset import precomputed
from lora_atelier.training.dataset.cache import CACHE_LIMIT, TensorCache
from lora_atelier.training.dataset.samples import Dataset, Subset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.files import read_tensors
from lora_atelier.training.grid import plan, render
from lora_atelier.training.objective import noise
from lora_atelier.training.step import noised
from PIL import Image

from ..zoo import texts
from ..zoo.build import build
from ..zoo.recipes import RECIPES
from ..zoo.test_zoo import present
from .dataset.made_films import levels
from .grid.test_render import columns
from .test_job import fresh_folders, go, recipe  # noqa: F401

NARROW = NoiseConfig(lowest=0.6, highest=0.8)
"""Levels at which losses are of one size."""
HOW = Sampling("", "euler", "simple", 2, 2.0, 96, 64, 3)


def hidream_clip():
    """The host's own, which has no weights."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders import hidream_o1

    with torch.inference_mode():
        return comfy.sd.CLIP(ClipTarget(hidream_o1.HiDreamO1Tokenizer, hidream_o1.HiDreamO1TE))


def made(name: str) -> SimpleNamespace:
    import comfy.sd

    found = next(one for one in RECIPES if one.name == name)
    if name == "PixelDiT":
        width = texts.LLAMA["hidden_size"]
        found = dataclasses.replace(found, config={**found.config, "txt_embed_dim": width, "txt_max_length": 300})
    model = build(present(found)).model
    reader = next(one for one in texts.READERS if "PixelDiT" in one.name)
    clip = hidream_clip() if name == "HiDream O1" else texts.build(reader)
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    return SimpleNamespace(model=model, text=host.TextEncoder(clip), codec=host.PictureCodec(vae))


@pytest.fixture(scope="module", params=["HiDream O1", "PixelDiT"])
def pixels(request, comfyui) -> SimpleNamespace:
    return made(request.param)


@pytest.fixture(scope="module")
def hidream(comfyui) -> SimpleNamespace:
    return made("HiDream O1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    for i in range(3):
        Image.fromarray(levels(1, (96, 64) if i else (64, 64), seed=i)[0]).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red boat" + ", at night" * i, encoding="utf-8")
    return folder


def drawings(folder: Path, **settings) -> Dataset:
    return Dataset(scan(folder, SubsetConfig("input/drawings", **{"resolution": 64, "bucket_step": 32, **settings})))


def of(name: str, **changes):
    values = {"network": NetworkConfig(rank=8, alpha=8.0), "optimizer": OptimizerConfig(learning_rate=1e-2), **changes}
    return recipe(name, precision="fp32", **values)


def stock(model, clip, codec, prompt: str = "a fox") -> Image.Image:
    """As the nodes that come with ComfyUI draw it from an empty picture, with a network that remembers nothing yet."""
    import nodes

    getattr(model.model.diffusion_model, "clear_kv_cache", lambda: None)()
    with torch.inference_mode():
        both = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "")]
        empty = {"samples": torch.zeros(1, 3, HOW.height, HOW.width)}
        [latent] = nodes.common_ksampler(model, HOW.seed, HOW.steps, HOW.cfg, HOW.sampler, HOW.scheduler, *both, empty)
        shown = nodes.VAEDecode().decode(codec.vae, latent)[0][0]
    return Image.fromarray(np.clip(255.0 * shown.cpu().numpy(), 0, 255).astype(np.uint8))


def test_a_run_learns_and_a_grid_draws_what_the_stock_nodes_do(pixels, folder, tmp_path):
    t, before = pixels, pixels.model.identity()
    plain = stock(t.model.patcher, t.text.clip, t.codec)
    sample = job.Preview("a fox", "", HOW.steps, HOW.cfg, HOW.sampler, HOW.scheduler, HOW.seed, HOW.width, HOW.height)
    learnt = go(t, drawings(folder), of("boats", length=LengthConfig(epochs=12), noise=NARROW), sample)
    losses = [row if isinstance(row, float) else row[-1] for row in learnt.losses]
    assert np.mean(losses[-9:]) < np.mean(losses[:9])
    with Image.open(tmp_path / "runs" / "boats" / "samples" / "boats-000000.png") as first:
        assert first.convert("RGB").tobytes() == plain.tobytes()
    path = learnt.epochs.files[-1].path
    axes = plan.Axes(("a fox",), columns(path), (0.0, 4.0), (HOW.seed,), None)
    grid = render.Grid(t.model, t.text, t.codec, axes, HOW, tmp_path / "grids", {})
    with torch.inference_mode():
        grid.render(lambda done, page: None)
    with_it = t.model.with_lora(t.text.clip, read_tensors(path, "look"), 4.0)
    merged = np.asarray(stock(*with_it, t.codec), dtype=int)
    drawn = [np.asarray(Image.open(grid.book.cells[0][place]).convert("RGB"), dtype=int) for place in ((0, 0), (1, 0), (1, 1))]
    assert np.array_equal(drawn[0], np.asarray(plain)) and np.array_equal(drawn[1], drawn[0])
    assert np.abs(drawn[2] - merged).max() <= 4 < np.abs(drawn[2] - drawn[0]).max()
    assert t.model.identity() == before
    assert stock(t.model.patcher, t.text.clip, t.codec).tobytes() == plain.tobytes()


def test_what_a_graph_has_left_in_the_network_is_there_afterwards_and_nothing_of_training(hidream, folder):
    network = hidream.model.base.diffusion_model
    stock(hidream.model.patcher, hidream.text.clip, hidream.codec, "a red boat")
    left = network._kv_cache_entries
    assert len(left) == 2
    go(hidream, drawings(folder), of("forgets"), job.Preview("a red boat", "", 1, 1.0, "euler", "simple", 3))
    assert network._kv_cache_entries is left and not any(k.requires_grad for entry in left for kv in entry["kv"] for k in kv)


def test_the_noise_is_as_strong_as_the_host_makes_it(hidream):
    """Its sampler's first picture is ``noise_scaling`` of the noise: 8 times as strong; the target is what takes it away."""
    model, stream = hidream.model, torch.Generator().manual_seed(1)
    x0, e = torch.rand(2, 3, 64, 64, generator=stream), torch.randn(2, 3, 64, 64, generator=stream)
    sigma = torch.tensor([0.3, 0.9])
    told = hidream.text.encode("a red boat")
    asked = noised(model, x0, sigma, e, [told, told], [{}, {}])
    wanted = torch.cat([model.sampling.noise_scaling(s[None], n[None], x[None]) for s, n, x in zip(sigma, e, x0, strict=True)])
    assert model.noise_scale == 8.0 and torch.allclose(asked.x, wanted, atol=1e-5)
    clean = model.sampling.calculate_denoised(sigma, asked.target, asked.x)
    assert torch.allclose(clean, x0, atol=1e-4)
    assert torch.allclose(asked.x, noise.noisy("flow", x0, 8 * e, sigma))


def test_sizes_that_it_does_not_read_are_refused(hidream, folder):
    with pytest.raises(AtelierError, match=r"^bucket step: subset 1 .* 80 .* squares of 32. Set bucket_step"):
        go(hidream, drawings(folder, bucket_step=16, resolution=80), of("odd"))
    cache, told = TensorCache(host.cache_folder(), CACHE_LIMIT), hidream.text.clip
    with torch.inference_mode():
        conditioning = [told.encode_from_tokens_scheduled(told.tokenize("a boat"))]
        latents = [{"samples": torch.zeros(1, 3, 64, 96)}, {"samples": torch.zeros(1, 3, 64, 72)}]
        samples = precomputed.store(latents, conditioning, cache)
    ready = Dataset((Subset(SubsetConfig("nodes/latents"), samples, 1),))
    with pytest.raises(AtelierError, match=r"^latents: subset 1 .* 72 x 64 pixels, .* squares of 32. Encode pictures whose"):
        go(hidream, ready, of("ready"))
    assert go(hidream, Dataset((Subset(SubsetConfig("nodes/latents"), samples[:1], 1),)), of("even"))
    odd = dataclasses.replace(HOW, width=80)
    with pytest.raises(AtelierError, match=r"^width: 80 is not a multiple of 32, the model's cell; try 64\.$"):
        regularisation.RegularisationSet(
            hidream.model, hidream.text, hidream.codec, regularisation.Order(("a boat",), 1, odd), folder, {}
        )
    axes = plan.Axes(("a fox",), columns(), (0.0,), (3,), None)
    grid = render.Grid(hidream.model, hidream.text, hidream.codec, axes, odd, folder / "grids", {})
    assert any(
        "80 x 64 is drawn at 64 x 64, since this model's pictures consist of squares of 32" in one for one in grid.remarks()
    )


def test_another_models_text_is_refused(hidream, folder, tiny):
    t = SimpleNamespace(model=hidream.model, text=tiny("sd15").text, codec=hidream.codec)
    with pytest.raises(AtelierError, match=r"^clip: the text does not come as the words' numbers"):
        go(t, drawings(folder), of("other"))
