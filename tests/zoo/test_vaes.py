"""VAEs as published, with random weights, where the host puts them: the pack gets of them what the host's own nodes get."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from unittest.mock import PropertyMock

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.tensors.inference_tensors import is_ordinary

from .test_partners import VAES


@pytest.fixture(scope="module", params=[name for name in VAES if name != "pixels"])
def vae(request, comfyui) -> Iterator[object]:
    """Known to the host by a few weights; the others then have the shapes that it wants."""
    import comfy.model_management
    import comfy.sd

    marks, _ = VAES[request.param]
    logging.disable(logging.WARNING)  # most of the file is missing
    with torch.device("meta"):
        known = comfy.sd.VAE(sd={name: torch.empty(shape) for name, shape in marks.items()})
    logging.disable(logging.NOTSET)
    stream, tensors = torch.Generator().manual_seed(5), {}
    for name, tensor in known.first_stage_model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=stream)
        one = name.endswith(("weight", "gamma")) and tensor.ndim != 1 and tensor.numel() > tensor.shape[0]
        norm = 1 + 0.1 * noise if name.endswith(("weight", "gamma")) else 0.02 * noise
        tensors[name] = noise / math.sqrt(tensor[0].numel()) if one else norm
    with torch.inference_mode():
        yield comfy.sd.VAE(sd=tensors)
        comfy.model_management.unload_all_models()


def test_latents_are_the_hosts_own_and_can_be_learnt_from(vae):
    codec = host.PictureCodec(vae)
    pixels = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(False):
        found = codec.encode(pixels)
    with torch.inference_mode():
        wanted = vae.encode(pixels)
    assert found.device.type == "cpu" and found.dtype == torch.float32 and is_ordinary(found) and found.isfinite().all()
    assert torch.equal(found, wanted.cpu().float())
    assert found.shape[1] == codec.channels and found.shape[-2:] == (64 // codec.downscale, 96 // codec.downscale)
    pictures = codec.decode(found)
    assert pictures.shape == (1, 64, 96, 3) and pictures.device.type == "cpu" and pictures.isfinite().all()
    assert codec.identity() == host.PictureCodec(vae).identity()


def test_several_pictures_are_what_each_is_alone_where_they_go_together(vae, monkeypatch):
    """As on a GPU, also where a VAE is for films, of which each picture is one."""
    codec = host.PictureCodec(vae)
    pixels = torch.rand(3, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([codec.encode(one[None]) for one in pixels])
    seen, real = [], type(vae).encode
    monkeypatch.setattr(type(vae), "encode", lambda self, x: seen.append(len(x)) or real(self, x))
    monkeypatch.setattr(host.PictureCodec, "_on_cpu", PropertyMock(return_value=False))
    together = codec.encode(pixels)
    assert seen == [3] and together.shape == alone.shape
    assert (together - alone).norm() <= 1e-4 * alone.norm(), "to rounding"
    assert torch.equal(vae.encode(pixels[:1]).cpu().float(), alone[:1]), "the VAE is as it was"
