"""The VAE: several pictures at once are what each is alone, and where memory ends fewer go together before any goes in tiles."""

from __future__ import annotations

import copy
import inspect
import re
from types import SimpleNamespace
from unittest.mock import PropertyMock

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.host import pictures as codecs

from ...conftest import GPU, pretend_gpu


def noise(count: int, side: int = 64) -> torch.Tensor:
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(3))


def alone(codec: host.PictureCodec, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([codec.encode(one[None]) for one in pixels])


@pytest.fixture
def codec(tiny, monkeypatch):
    """A codec of its own on the VAE of a tiny model, which notes how many pictures come at a time in ``counts``."""
    made = host.PictureCodec(copy.copy(tiny("sd15").codec.vae))
    model = made.vae.first_stage_model
    real, made.counts, made.limit = model.encode, [], 10**9

    def encode(x, *arguments, **named):
        made.counts.append(len(x))
        made.dtype = x.dtype
        if len(x) > made.limit or made.limit == 0:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(x, *arguments, **named)

    monkeypatch.setattr(model, "encode", encode)
    return made


def test_several_at_once_are_what_each_is_alone(codec):
    pixels = noise(5)
    expected = alone(codec, pixels)
    codec.counts.clear()
    found = codec.encode(pixels)
    assert codec.counts == [5] and torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.device.type == "cpu" and found.dtype == torch.float32 and len(found.unique(dim=0)) == 5


def test_pixels_may_come_on_the_device(codec):
    pixels = noise(3)
    assert torch.equal(codec.encode(pixels.to(codec.device)), codec.encode(pixels))


@pytest.mark.parametrize(("count", "limit", "tried"), [(8, 3, [8, 4, 2, 2, 4, 2, 2]), (5, 1, [5, 2, 1, 1, 3, 1, 2, 1, 1])])
def test_where_memory_ends_fewer_go_together_and_none_in_tiles(codec, monkeypatch, count, limit, tried):
    pixels = noise(count)
    expected = alone(codec, pixels)
    monkeypatch.setattr(type(codec.vae), "encode_tiled_", lambda *_: pytest.fail("tiles have seams"))
    codec.counts.clear()
    codec.limit = limit
    found = codec.encode(pixels)
    assert codec.counts == tried and torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_picture_for_which_there_is_no_memory_goes_in_tiles_as_the_host_does_it(codec, monkeypatch):
    tiled = []

    def tiles(vae, pixels, **_):
        tiled.append(len(pixels))
        return torch.zeros(len(pixels), 4, 8, 8)

    monkeypatch.setattr(type(codec.vae), "encode_tiled_", tiles)
    codec.limit = 0
    assert codec.encode(noise(3)).shape == (3, 4, 8, 8) and tiled == [1, 1, 1]


def test_another_error_is_no_lack_of_memory(codec, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a kernel is missing")

    monkeypatch.setattr(codec.vae.first_stage_model, "encode", broken)
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        codec.encode(noise(2))


def test_the_hosts_choice_of_a_number_format_is_kept(codec, monkeypatch):
    model = codec.vae.first_stage_model
    pixels = noise(4)
    exact = alone(codec, pixels)
    monkeypatch.setattr(codec.vae, "vae_dtype", torch.bfloat16)
    try:
        model.to(torch.bfloat16)
        together, singly = codec.encode(pixels), alone(codec, pixels)
        assert codec.dtype == torch.bfloat16 and together.dtype == torch.float32 and together.isfinite().all()
        error = (singly - exact).norm() / exact.norm()
        assert 0 < error < 0.05 and (together - singly).norm() / exact.norm() < 0.5 * error
    finally:
        model.to(torch.float32)


# How many fit --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(comfyui, monkeypatch):
    """A VAE of 1,000 bytes, 400 of them loaded, that takes 10 bytes a pixel, and what a device says that it has free."""
    import comfy.model_management as management

    free = {"bytes": 0}
    patcher = SimpleNamespace(
        model_size=lambda: 1000, loaded_size=lambda: 400, load_device=torch.device("cuda"), model=torch.nn.Module()
    )
    vae = SimpleNamespace(
        patcher=patcher, latent_dim=2, vae_dtype=torch.bfloat16,
        memory_used_encode=lambda shape, dtype: 5 * shape[-1] * shape[-2] * dtype.itemsize,
    )  # fmt: skip
    monkeypatch.setattr(management, "get_free_memory", lambda device: free["bytes"])
    monkeypatch.setattr(management, "soft_empty_cache", lambda: None)
    return free, host.PictureCodec(vae)


@pytest.mark.parametrize(("free", "fit"), [(0, 1), (660 + 999, 1), (660 + 2000, 2), (660 + 12_345, 12)])
def test_as_many_fit_as_the_hosts_measure_says(card, free, fit):
    memory, codec = card
    memory["bytes"] = free
    assert codec.at_once(10, 10) == fit


def test_weights_that_can_be_paged_out_count_as_free(card):
    memory, codec = card
    codec.vae.patcher.get_free_memory = lambda device: memory["bytes"] + 3000
    memory["bytes"] = 660 + 2000
    assert codec.at_once(10, 10) == 5


def test_what_was_too_much_once_is_not_tried_again(card):
    memory, codec = card
    memory["bytes"] = 660 + 50_000
    assert codec.at_once(10, 10) == 50 and codec.at_once(50, 100) == 1

    def encode(pixels):
        if len(pixels) > 7:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return torch.ones(len(pixels), 4, 2, 2)

    codec.vae.encode = encode
    assert len(codec.encode(noise(50, 10))) == 50
    assert codec.at_once(10, 10) == 6 and codec.at_once(10, 20) == 3 and codec.at_once(100, 100) == 1


def test_on_a_cpu_pictures_go_alone(tiny, monkeypatch):
    monkeypatch.setattr(host.PictureCodec, "_on_cpu", PropertyMock(return_value=True))
    assert tiny("sd15").codec.at_once(64, 64) == 1


# Films ---------------------------------------------------------------------------------------------------------------------


class Films(SimpleNamespace):
    """A VAE for films as the host has it: pictures without a time are the frames of one."""

    latent_dim, not_video, crop_input = 3, False, True

    def vae_encode_crop_pixels(self, pixels):
        return pixels[:, :8, :8]

    def encode(self, pixels):
        pixels = self.vae_encode_crop_pixels(pixels) if self.crop_input else pixels
        pixels = pixels.movedim(-1, 1)
        pixels = pixels if pixels.ndim == 5 else pixels.movedim(1, 0)[None]
        self.shapes.append(tuple(pixels.shape))
        return pixels.mean((-1, -2), keepdim=True)


@pytest.mark.parametrize(("kind", "shapes"), [("cuda", [(3, 3, 1, 8, 8)]), ("cpu", [(1, 3, 1, 8, 8)] * 3)])
def test_pictures_are_films_of_one_frame_and_not_the_frames_of_one(comfyui, kind, shapes):
    vae = Films(shapes=[], patcher=SimpleNamespace(load_device=torch.device(kind), model=torch.nn.Module()))
    pixels = noise(3, 9)
    found = host.PictureCodec(vae).encode(pixels)
    assert vae.shapes == shapes and vae.crop_input
    assert torch.equal(found[:, :, 0, 0, 0], pixels[:, :8, :8].movedim(-1, 1).mean((-1, -2)))


class Stranger(Films):
    """One that other nodes made, which cuts nothing itself."""

    @property
    def vae_encode_crop_pixels(self):
        raise AttributeError("vae_encode_crop_pixels")

    def encode(self, pixels):
        self.shapes.append(tuple(pixels.shape))
        return pixels.movedim(-1, 0)[None].mean((-1, -2), keepdim=True)


def test_a_vae_of_another_kind_gets_its_pictures_one_by_one(comfyui):
    vae = Stranger(shapes=[], patcher=SimpleNamespace(load_device=torch.device("cuda"), model=torch.nn.Module()))
    assert host.PictureCodec(vae).encode(noise(3, 9)).shape[0] == 3 and vae.shapes == [(1, 9, 9, 3)] * 3


@pytest.mark.skipif(GPU != "pretend", reason="a limit on the memory can be pretended only")
def test_a_device_that_runs_full_gives_the_latents_of_single_pictures(tiny):
    vae = copy.copy(tiny("sd15").codec.vae)
    vae.memory_used_encode = lambda shape, dtype: 1  # far too low a measure: else the host itself would take fewer
    codec, pixels = host.PictureCodec(vae), noise(16, 128)
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.unload_all_models()  # those of other tests, which the host would put aside to make room
    expected = alone(codec, pixels)
    device = pretend_gpu().install()
    device.forget_most()
    codec.encode(pixels[:2])
    two = device.most - device.in_use
    with device.limited(2 * two):
        found = codec.encode(pixels)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert codec._most is not None and codec._most < 16 * 128 * 128, "the limit was met"


def test_what_stands_for_the_hosts_tiles_is_what_the_host_calls(comfyui):
    """All that ``VAE.encode`` calls beside the model itself where it has run out of memory."""
    import comfy.sd

    after = inspect.getsource(comfy.sd.VAE.encode).partition("if do_tile:")[2]
    called = set(re.findall(r"self\.(\w*tiled\w*)\(", after))
    assert called and called <= set(codecs.TILED)
