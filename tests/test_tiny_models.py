"""The tiny checkpoints are what the other tests believe: recognised by the host, complete, alive in every layer."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from lora_atelier.tests import tiny_models

LATENT_SIDE = 8
LARGEST_SPREAD = 40  # real SD latents: about 5; noise at the first step, in the same units: 80
COMPLAINTS = ("missing", "unexpected", "left over", "no clip", "no vae")


def sample(model, positive, channels: int) -> torch.Tensor:
    """Two steps of the host's own sampler."""
    import comfy.sample

    empty = torch.zeros(1, channels, LATENT_SIDE, LATENT_SIDE)
    noise = comfy.sample.prepare_noise(empty, seed=7)
    return comfy.sample.sample(model, noise, 2, 1.0, "euler", "simple", positive, positive, empty, seed=7)


def assert_quiet(caplog: pytest.LogCaptureFixture) -> None:
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]
    assert not [line for line in told if any(word in line.lower() for word in COMPLAINTS)]


@pytest.fixture(scope="module", params=["sd15", "sd3"])
def checkpoint(request, comfyui) -> Path:
    return tiny_models.cached(request.param)


def test_checkpoint_loads_and_samples(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    import comfy.model_base
    import comfy.sd

    caplog.set_level(logging.INFO)
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=True, output_clip=True)
    assert_quiet(caplog)
    expected, channels = {
        "sd15": (comfy.model_base.ModelType.EPS, 4),
        "sd3": (comfy.model_base.ModelType.FLOW, 16),
    }[checkpoint.stem]
    assert model.model.model_type == expected

    with torch.inference_mode():
        cat, dog = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a cat", "a dog"))
        latent = sample(model, cat, channels)
        other = sample(model, dog, channels)
        picture = vae.decode(latent)
        again = vae.encode(picture)
    assert picture.shape == (1, 8 * LATENT_SIDE, 8 * LATENT_SIDE, 3)
    assert torch.isfinite(picture).all() and picture.std() > 0.05, "a flat picture tests nothing"
    assert 0.1 < latent.std() < LARGEST_SPREAD
    assert again.shape == latent.shape and torch.isfinite(again).all() and again.std() > 0.05
    assert (latent - other).abs().max() > 1e-2, "the caption must matter"


@pytest.mark.parametrize("name", ["sdxl_unet", "sdxl_v_unet"])
def test_diffusion_model_loads_and_samples(name: str, comfyui: Path, caplog: pytest.LogCaptureFixture) -> None:
    import comfy.model_base
    import comfy.sd

    caplog.set_level(logging.INFO)
    model = comfy.sd.load_diffusion_model(str(tiny_models.cached(name)))
    if name == "sdxl_unet":
        assert_quiet(caplog)
    assert isinstance(model.model, comfy.model_base.SDXL)
    kind = comfy.model_base.ModelType
    assert model.model.model_type == (kind.V_PREDICTION if "_v_" in name else kind.EPS)

    with torch.inference_mode():
        latents = [sample(model, tiny_models.sdxl_conditioning(seed), 4) for seed in (1, 2)]
    assert all(torch.isfinite(x).all() and 0.1 < x.std() < LARGEST_SPREAD for x in latents)
    assert (latents[0] - latents[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", tiny_models.BUILDERS)
def test_every_layer_is_alive(name: str, comfyui: Path) -> None:
    """No tensor of the diffusion model is constant, so a gradient passes every layer."""
    from safetensors import safe_open

    with safe_open(tiny_models.cached(name), "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if "diffusion_model." in key or name.startswith("sdxl"):
                tensor = file.get_tensor(key)
                assert tensor.numel() < 2 or tensor.float().std() > 1e-3, key
