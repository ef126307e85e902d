"""Beside weights of fewer bits, packed ones included, the gradient is that of the weights that they stand for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lora_atelier.training.network.base_layer import is_linear
from torch import Tensor, nn

from .build import Animal, build
from .packing import FP8, loaded
from .recipes import RECIPES, Recipe
from .test_zoo import gradients, new_adapter, one_loss, picture

KINDS = [recipe for recipe in RECIPES if recipe.name in ("Flux dev", "SD 3")]


@pytest.fixture(scope="module", params=KINDS, ids=[recipe.name for recipe in KINDS])
def recipe(request, comfyui) -> Recipe:
    """Of a tiny model that the stock loader knows."""
    if not build(request.param).loaded:
        pytest.skip(f"this ComfyUI loads {request.param.name} in its published size only")
    return request.param


@pytest.fixture(scope="module")
def tensors(recipe) -> dict[str, Tensor]:
    """Its weights."""
    return {name: t.clone() for name, t in build(recipe).model.base.diffusion_model.state_dict().items()}


def rounded(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype).float() for name, tensor in tensors.items()}


def far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative distance of two whole gradients."""
    difference = sum((one[name] - other[name]).square().sum() for name in one)
    return (difference / sum(g.square().sum() for g in one.values())).sqrt().item()


def learns(animal: Animal) -> bool:
    adapter = new_adapter(animal, up=0.0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    with animal.model.hold(), adapter.attached(animal.model.layers()):
        for _ in range(10):
            value = one_loss(animal, [0, 1])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, FP8], ids=str)
def test_weights_of_fewer_bits_computed_in_float32(recipe, tensors, dtype):
    """The host casts them in every operation; the gradient is that of the rounded weights."""
    animal = loaded(recipe, tensors, options={"dtype": dtype})
    assert next(p for n, p in animal.model.base.named_parameters() if "_blocks." in n and p.ndim == 2).dtype == dtype
    right = gradients(same := loaded(recipe, rounded(tensors, dtype)), new_adapter(same), [0])
    before = picture(animal)
    trained = animal.model.for_training(torch.float32)
    held = dataclasses.replace(animal, model=trained)
    assert far(right, gradients(held, new_adapter(held), [0])) < 1e-4
    assert learns(held)
    assert torch.equal(picture(animal), before)


class Packed(Tensor):
    """A weight of 8 bits a number and one scale a row, inside a tensor of a class of its own, as GGUF loaders have it."""

    scale: Tensor

    @classmethod
    def pack(cls, weight: Tensor) -> Packed:
        scale = weight.abs().amax(1, keepdim=True) / 127
        packed = (weight / scale).round().to(torch.int8).as_subclass(cls)
        packed.scale = scale
        return packed

    def detach(self) -> Packed:
        same = super().detach()
        same.scale = self.scale
        return same

    def dequantize(self) -> Tensor:
        return self.as_subclass(Tensor).float() * self.scale.to(self.device)


class PackedLinear(nn.Linear):
    """Unpacks its weight for every call."""

    def __init__(self, source: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.bias = source.bias
        self.weight = nn.Parameter(Packed.pack(source.weight), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.dequantize().to(x.dtype), bias)


def test_a_layer_that_keeps_its_weight_in_an_object_of_its_own(recipe, tensors):
    animal, same = loaded(recipe, tensors), loaded(recipe, tensors)
    with torch.inference_mode():
        for name, layer in list(animal.model.base.diffusion_model.named_modules()):
            if "_blocks." in name and is_linear(layer):
                parent, _, own = name.rpartition(".")
                packed = PackedLinear(layer)
                setattr(animal.model.base.diffusion_model.get_submodule(parent), own, packed)
                same.model.base.diffusion_model.get_submodule(name).weight.data.copy_(packed.weight.dequantize())
    right = gradients(same, new_adapter(same), [0])
    assert far(right, gradients(animal, new_adapter(animal), [0])) < 1e-4
    assert learns(animal)
