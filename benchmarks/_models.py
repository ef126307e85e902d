"""Models of the real sizes with random weights, built once: speed and memory don't ask what a weight means.

Stable Diffusion's UNets are written in diffusers' format, which diffusers and ComfyUI both load from one file; Flux in its own.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import BUILT
from safetensors.torch import save_file

SD15: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280),
}  # fmt: skip
SDXL: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280), "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
FLUX: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0,
    "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
SMALL_FLUX: dict[str, Any] = {**FLUX, "hidden_size": 256, "num_heads": 2, "depth": 2, "depth_single_blocks": 4}


@dataclass(frozen=True)
class Kind:
    """A model that is measured."""

    title: str
    channels: int
    """Of its latents."""
    tokens: int
    width: int
    """Of its text conditioning."""
    pooled: int
    """Numbers of the pooled text; 0: none."""
    unet: dict[str, Any] | None
    """diffusers' settings; None: not a UNet."""
    flux: dict[str, Any] | None = None
    """Flux's settings."""


KINDS = {
    "sd15": Kind("Stable Diffusion 1.5", 4, 77, 768, 0, SD15),
    "sdxl": Kind("Stable Diffusion XL", 4, 77, 2048, 1280, SDXL),
    "flux": Kind("Flux dev", 16, 512, 4096, 768, None, FLUX),
}
SMALL = {"flux-small": Kind("a small Flux", 16, 16, 4096, 768, None, SMALL_FLUX)}
"""Only to see that a benchmark runs."""


def kind_of(name: str) -> Kind:
    return (KINDS | SMALL)[name]


def file_of(name: str, dtype: str) -> Path:
    """The file with the weights of a model in ``fp32`` or ``bf16``; it is written if it isn't there. Needs the host."""
    path = BUILT / f"{name}-{dtype}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(_random(_empty(name).state_dict(), torch.float32 if dtype == "fp32" else torch.bfloat16), partial)
        os.replace(partial, path)
    return path


def empty_unet(name: str) -> Any:
    """diffusers' UNet without weights."""
    from diffusers import UNet2DConditionModel

    settings = kind_of(name).unet
    assert settings is not None, f"{name} is no UNet"
    with torch.device("meta"):
        return UNet2DConditionModel(**settings)


def _empty(name: str) -> Any:
    if kind_of(name).unet is not None:
        return empty_unet(name)
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    settings = kind_of(name).flux or {}
    return Flux(dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init, **settings)


def _random(shapes: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Matrices of standard deviation 0.5 / sqrt(fan in), norms of 1, biases of 0: signals shrink on their way and stay finite."""
    stream = torch.Generator().manual_seed(0)
    out = {}
    for name, shape in shapes.items():
        if shape.ndim >= 2:
            value = torch.empty(shape.shape).normal_(generator=stream).mul_(0.5 / math.sqrt(shape[0].numel()))
        else:
            value = torch.zeros(shape.shape) if name.endswith("bias") else torch.ones(shape.shape)
        out[name] = value.to(dtype)
    return out
