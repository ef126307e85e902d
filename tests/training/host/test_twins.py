"""Whether a second model that was read from a file is the first one's twin."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.host.weights import same_weights

from ..conftest import load_model

NETWORK = "diffusion_model"


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
