"""Tiny models with random weights, made by the host's own classes and, where it recognises them, loaded by its own loader."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from .recipes import Recipe


@dataclass(frozen=True)
class Animal:
    """One model of the zoo."""

    recipe: Recipe
    model: Any
    """``host.Model``."""
    loaded: bool
    """By the host's loader, not made from its class."""
    length: int = 1
    """Frames of the latent, of a model whose latents have any."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a picture's latent, or (C, T, H, W)."""
        return (self.model.latent_channels, *([self.length] if self.model.frames else []), *self.recipe.cells)

    @property
    def size(self) -> dict[str, int]:
        """Size conditioning of a picture of this many cells."""
        height, width = (8 * cells for cells in self.recipe.cells)
        return {"width": width, "height": height, "crop_w": 0, "crop_h": 0, "target_width": width, "target_height": height}

    def conditioning(self, seed: int) -> dict[str, Tensor]:
        """A random text encoding of the shape that the family's encoders give."""
        stream = torch.Generator().manual_seed(seed)
        out = {}
        for name, shape in self.recipe.text.items():
            if name.startswith("attention_mask"):
                out[name] = torch.ones(shape, dtype=torch.long)
            elif name.endswith("_ids"):
                out[name] = torch.randint(1, 1000, shape, generator=stream)
                if name in self.recipe.ends:
                    out[name][..., -1] = self.recipe.ends[name]
            else:
                out[name] = torch.randn(shape, generator=stream)
        return out

    def latents(self, count: int) -> Tensor:
        drawn = torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(4))
        return drawn.to(self.model.device)

    def levels(self, count: int) -> Tensor:
        return torch.linspace(0.3, 0.8, count, device=self.model.device) * (1.0 if self.model.prediction == "flow" else 4.0)


def weights_of(network: torch.nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Random float32 weights for every tensor of ``network``; none is zero, so that a gradient reaches every layer.

    Matrices and kernels are normal with standard deviation 1 / sqrt(fan in), which keeps a signal's size; norms are near 1;
    biases are small.
    """
    stream = torch.Generator().manual_seed(len(recipe.name))
    out: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            out[name] = tensor
            continue
        noise = torch.randn(tensor.shape, generator=stream)
        if name in recipe.constant:
            out[name] = noise * recipe.constant[name]
        elif tensor.ndim >= 2:
            out[name] = noise / math.sqrt(max(1, tensor[0].numel()))
        elif name.endswith(("weight", "scale", "gamma")):
            out[name] = (0 if recipe.centred else 1) + 0.1 * noise
        else:
            out[name] = 0.02 * noise
    return {**out, **{mark: torch.zeros(0) for mark in recipe.marks}}


def build(recipe: Recipe) -> Animal:
    """The model as a graph knows it: its weights are inference tensors. Raises whatever the host raises where it cannot.

    An older host may insist on the published sizes of what a newer one recognises; the model is then made from its class too.
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sd
    from lora_atelier.training import host

    with torch.inference_mode():
        made = from_class(recipe)
        tensors = weights_of(made.diffusion_model, recipe)
        if recipe.loads:
            with suppress(RuntimeError, ValueError, KeyError):
                try:
                    patcher = comfy.sd.load_diffusion_model_state_dict(dict(tensors))
                except TypeError as error:  # an older host has another network under that name
                    pytest.skip(f"this ComfyUI cannot load {recipe.name}: {error}")
                if patcher is not None:
                    return Animal(recipe, host.Model(patcher), True)
        made.diffusion_model.load_state_dict({name: tensors[name] for name in made.diffusion_model.state_dict()})
        load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        patcher = comfy.model_patcher.ModelPatcher(made, load_device=load, offload_device=offload)
    return Animal(recipe, host.Model(patcher), False)


def from_class(recipe: Recipe) -> Any:
    """The host's model of this family with these settings; an older host knows fewer of them."""
    import comfy.supported_models

    settings = dict(recipe.config)
    while True:
        config = getattr(comfy.supported_models, recipe.family)(settings)
        config.unet_config.update(settings)  # of some families the host insists on widths, which are not in the file
        config.set_inference_dtype(torch.float32, None)
        try:
            return config.get_model({mark: torch.zeros(0) for mark in recipe.marks}, "", device=torch.device("cpu"))
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in settings:
                raise
            del settings[unknown[1]]
