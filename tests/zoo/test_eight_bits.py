"""Every family held in eight bits: what it answers is what the weights that are meant answer, so nothing reads them otherwise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lora_atelier.training.performance.eight_bit_layers import chosen, remark
from torch import nn

from ..training.performance.test_eight_bit_layers import by_hand
from .build import Animal, build
from .packing import FORMATS, loaded, present, stored
from .recipes import RECIPES, Recipe
from .test_zoo import gradients, new_adapter, params, picture, refuses
from .test_zoo import present as known


def held(animal: Animal, kind: str) -> Animal:
    return dataclasses.replace(animal, model=animal.model.for_training(torch.float32, kind))


@pytest.mark.parametrize("recipe", params([r for r in RECIPES if not refuses(r)]))
def test_every_family_answers_with_the_weights_that_are_meant(recipe: Recipe, comfyui):
    """Some networks look at a layer's weight themselves, which a number without its scale would mislead."""
    animal, same = build(known(recipe)), build(recipe)
    if not (layers := chosen(same.model.blocks())):
        pytest.skip("a tiny one has no layers that are large enough")
    with torch.inference_mode():
        for layer in layers:
            layer.weight = nn.Parameter(by_hand(layer.weight, "fp8"), requires_grad=False)
    right = gradients(held(same, "as loaded"), new_adapter(same), [0])
    found = gradients(held(animal, "fp8"), new_adapter(animal), [0])
    apart = max(((right[n] - found[n]).norm() / right[n].norm().clamp_min(1e-9)).item() for n in right)
    assert apart < 1e-3
    names = {id(m): n for n, m in animal.model.base.diffusion_model.named_modules()}
    assert not [names[id(m)] for m in chosen(animal.model.blocks()) if "norm" in names[id(m)] or "embed" in names[id(m)]]


@pytest.mark.parametrize("form", [f for f in FORMATS if f.name in ("fp8 e4m3, by the loader", "fp8 e4m3 scaled", "nvfp4")])
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.name in ("SD 3", "Flux dev")], ids=lambda r: r.name)
def test_what_is_packed_already_is_trained_as_it_is(form, recipe: Recipe, comfyui):
    present(form)
    whole = build(recipe)
    if not whole.loaded:
        pytest.skip(f"this ComfyUI loads {recipe.name} in its published size only")
    file, metadata, _ = stored(form, {n: t.clone() for n, t in whole.model.base.diffusion_model.state_dict().items()})
    animal = loaded(recipe, file, metadata, form.options)
    before = picture(animal)
    usual, asked = (gradients(held(animal, kind), new_adapter(animal), [0]) for kind in ("as loaded", "int8"))
    left = len(chosen(animal.model.blocks()))
    if not left:
        assert remark(animal.model.blocks(), "int8") == (
            "base_weights: int8 changes nothing, since this model is stored in 8 bits or fewer already"
        )
        assert all(torch.equal(usual[name], asked[name]) for name in usual)
    assert all(g.isfinite().all() for g in asked.values()) and torch.equal(picture(animal), before)
    assert left < len(chosen(whole.model.blocks()))
