"""Twins that draw for a while: what a second model from one file must be, and the reasons for which there is none."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from lora_atelier.benchmarks import _counts
from lora_atelier.training import host
from lora_atelier.training.host import twins
from lora_atelier.training.host.weights import same_weights

from ..conftest import load_model
from .test_host import picture

NETWORK = "diffusion_model"
CPU = torch.device("cpu")


@pytest.fixture
def two(comfyui):
    """Patchers of two models from one file."""
    return load_model("sd3").model.patcher, load_model("sd3").model.patcher


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_it_is_if_its_weights_are_the_others_in_its_own_number_format(two, dtype):
    one, other = two
    with torch.inference_mode():
        other.model.to(dtype)
    assert same_weights(one, other, NETWORK)
    with torch.inference_mode():
        next(other.model.diffusion_model.parameters()).flatten()[:1].copy_(torch.full((1,), 4.0))
    assert not same_weights(one, other, NETWORK)


def test_it_is_none_if_it_has_other_layers(two):
    one, other = two
    del other.model.diffusion_model.final_layer
    assert not same_weights(one, other, NETWORK)


def test_a_lora_that_is_merged_into_the_first_for_now_does_not_count(two):
    import comfy.model_management as management

    one, other = two
    key = "diffusion_model.final_layer.linear.weight"
    with torch.inference_mode():
        patched = one.clone()
        patched.add_patches({key: (torch.ones_like(one.model.diffusion_model.final_layer.linear.weight),)})
        management.load_models_gpu([patched])
        mine, its = (each.model.diffusion_model.final_layer.linear.weight.cpu() for each in two)
        assert not torch.equal(mine, its)
        assert same_weights(one, other, NETWORK)
        management.unload_all_models()
    assert same_weights(one, other, NETWORK)


def is_free(patch, device, size):
    import comfy.model_management as management

    real = management.get_free_memory

    def free(which=None, torch_free_too=False):
        return size if which == device and not torch_free_too else real(which, torch_free_too)

    patch.setattr(management, "get_free_memory", free)


def little_main_memory(t, patch):
    is_free(patch, CPU, t.model.patcher.model_size())


def little_memory(t, patch):
    """Enough for the weights, and not for a grid beside them."""
    is_free(patch, _counts.DEVICE, t.model.patcher.model_size() * 2)


def another_file(t, patch):
    """What was saved under its name since."""
    real = t.model.patcher.cached_patcher_init[0]

    def read(*given, **named):
        found = real(*given, **named)
        (found[0] if isinstance(found, tuple) else found).model.diffusion_model.pos_embed[..., 0] += 1
        return found

    t.model.patcher.cached_patcher_init = (read, *t.model.patcher.cached_patcher_init[1:])


def no_file(t, patch):
    def read(*given, **named):
        raise FileNotFoundError("model.safetensors is gone")

    t.model.patcher.cached_patcher_init = (read, *t.model.patcher.cached_patcher_init[1:])


def another_loader(t, patch):
    t.model.patcher.cached_patcher_init = None


def a_lora(t, patch):
    weight = t.model.base.diffusion_model.x_embedder.proj.bias
    with torch.inference_mode():
        t.model.patcher.add_patches({"diffusion_model.x_embedder.proj.bias": (torch.full_like(weight, 0.1),)})


def models_go_after_use(t, patch):
    patch.setattr("comfy.model_management.DISABLE_SMART_MEMORY", True)


REASONS = {
    little_main_memory: "of main memory",
    little_memory: "of the device's",
    another_file: "its file holds other weights now",
    no_file: "the host cannot load it a second time: model.safetensors is gone",
    another_loader: "the host cannot load it a second time: Cannot create non-dynamic delegate",
    a_lora: "would be rounded otherwise",
    models_go_after_use: "the host puts models aside after each use",
}


@pytest.mark.parametrize("change", REASONS, ids=lambda change: change.__name__)
def test_where_there_is_none_nothing_is_moved_and_nothing_stays(loaded, monkeypatch, change):
    t = loaded("dynamic")
    before = picture(t)
    there = _counts.loaded_bytes()
    with monkeypatch.context() as patch:
        change(t, patch)
        drawing = twins.twin_for_sampling(t.model.patcher, NETWORK, 10 * t.model.patcher.model_size())
        with pytest.raises(twins.NoTwin, match=REASONS[change]), torch.inference_mode(), drawing:
            pass
    assert t.model.patcher.non_dynamic_delegate_model is None and _counts.loaded_bytes() == there
    assert change is a_lora or torch.equal(picture(t), before)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_it_lies_on_the_device_while_it_draws_and_is_gone_afterwards(loaded, error):
    t = loaded("dynamic")
    before = picture(t)
    with suppress(error or ()), torch.inference_mode(), t.model.resident(1, (8, 8), 0) as same:
        assert same is t.model, "nothing here could record it"
    with suppress(error or ()), torch.inference_mode(), twins.twin_for_sampling(t.model.patcher, NETWORK, 0) as twin:
        drawn = picture(SimpleNamespace(**{**vars(t), "model": host.Model(twin)}))
        assert torch.equal(drawn, before) and _counts.loaded_bytes()[id(twin.model)] == twin.model_size()
        assert id(t.model.base) not in _counts.loaded_bytes()
        if error is not None:
            raise error
    assert t.model.patcher.non_dynamic_delegate_model is None and twin.loaded_size() == 0
    assert id(twin.model) not in _counts.loaded_bytes()
    assert torch.equal(picture(t), before)
