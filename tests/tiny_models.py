"""Tiny checkpoints with random weights, in the formats that the stock loaders know.

Names and shapes come from the host's own classes, so a builder needs ``comfy`` on the import path. Every layer gets weights
unlike zero, also those that published models start or end at zero: a gradient then reaches every layer, and the samples of two
different LoRAs differ. Sizes are the smallest that the hosts' detection accepts.

``cached(name)`` builds each file once for all test runs of a working copy (CLIP-L alone is 123 M numbers).
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
CLIP_CONTEXT, SDXL_CONTEXT, SDXL_POOLED, SDXL_VECTOR = 768, 2048, 1280, 2816
SD3_CONTEXT, SD3_POOLED = 4096, 2048

Tensors = dict[str, torch.Tensor]


def randomise(module: torch.nn.Module, seed: int, gain: float = 1.0) -> Tensors:
    """State dict of ``module`` with random weights, fp16.

    Matrices and kernels are normal with standard deviation ``gain / sqrt(fan in)``, which keeps a signal's size; norms are near
    1; biases are small.
    """
    stream = torch.Generator().manual_seed(seed)
    out: Tensors = {}
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=stream)
        if tensor.ndim >= 2:
            value = noise * gain / math.sqrt(tensor[0].numel())
        elif name.endswith("weight"):
            value = 1 + 0.1 * noise
        else:
            value = 0.02 * noise
        out[name] = value.half()
    return out


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def unet(seed: int, **settings: object) -> Tensors:
    """An SD-type UNet of one width, 320 channels; ``settings`` are those of the host's ``UNetModel``."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False,
        dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init, **settings,
    )  # fmt: skip
    return randomise(model, seed)


def let_input_through(tensors: Tensors) -> Tensors:
    """Let the UNet answer with its input plus the random part, in place.

    A noisy picture is mostly noise, so this is a sensible answer of an eps model, and samples stay of the size of a latent
    instead of growing to a hundred times that. The input walks over the outermost skip as channels 0..3, and negated as 4..7,
    since ``silu(x) - silu(-x) = x``; what else reaches those channels and the answer is kept small.
    """
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("output_blocks."))
    block, width = f"output_blocks.{last}.0.", tensors["input_blocks.0.0.weight"].shape[0]
    tensors["out.2.weight"] *= 0.1
    for name in (block + "out_layers.3.weight", f"output_blocks.{last}.1.proj_out.weight"):
        if name in tensors:
            tensors[name][:8] *= 0.1
    for channel in range(8):
        sign, source = (1.0 if channel < 4 else -1.0), channel % 4
        first, skip, answer = (tensors[n] for n in ("input_blocks.0.0.weight", block + "skip_connection.weight", "out.2.weight"))
        first[channel] = 0
        first[channel, source, 1, 1] = sign
        skip[channel] = 0
        skip[channel, tensors[block + "in_layers.0.weight"].shape[0] - width + channel] = 1
        answer[source, channel] = 0
        answer[source, channel, 1, 1] = sign
    return tensors


def autoencoder(channels: int, seed: int) -> Tensors:
    """A TAESD-format autoencoder. Its deep stack has no norms, so the residual branches are kept small."""
    from comfy.taesd.taesd import TAESD

    out = randomise(TAESD(latent_channels=channels), seed, gain=math.sqrt(2))
    for name in out:
        if name.endswith("conv.4.weight"):
            out[name] *= 0.2
    out["vae_scale"], out["vae_shift"] = torch.tensor(1.0), torch.tensor(0.0)
    return out


def clip_l() -> Tensors:
    """CLIP-L's size is fixed by the hosts; these are the demo model's generated weights."""
    from lora_atelier.demo.weights import random_clip_l

    return random_clip_l()


def sd15(path: Path) -> Path:
    """SD1.5 format (eps): UNet of two levels with one block each, 4-channel autoencoder, CLIP-L."""
    diffusion = unet(
        15, channel_mult=[1, 1], num_res_blocks=[1, 1], transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1],
        transformer_depth_middle=1, context_dim=CLIP_CONTEXT, num_heads=8,
    )  # fmt: skip
    text = {name: tensor for name, tensor in clip_l().items() if "text_projection" not in name}
    return write(
        path,
        with_prefix("model.diffusion_model.", let_input_through(diffusion))
        | with_prefix("first_stage_model.", autoencoder(4, 16))
        | with_prefix("cond_stage_model.", text),
    )


def sdxl_unet(path: Path, v_prediction: bool = False) -> Path:
    """SDXL format, the UNet alone, for the diffusion-model loader.

    The depths are those of the smallest SDXL relative that the hosts know, and one width serves all levels. With
    ``v_prediction`` the file holds the key ``v_pred`` by which the hosts recognise v models among SDXL checkpoints.
    """
    diffusion = unet(
        20, channel_mult=[1, 1, 1], num_res_blocks=[1, 1, 1], transformer_depth=[0, 2, 5],
        transformer_depth_output=[0, 0, 1, 0, 1, 0], transformer_depth_middle=1, context_dim=SDXL_CONTEXT,
        num_heads=-1, num_head_channels=64, use_linear_in_transformer=True, num_classes="sequential",
        adm_in_channels=SDXL_VECTOR,
    )  # fmt: skip
    if v_prediction:  # a v model answers a noisy picture with the negated clean one, so nothing is let through
        return write(path, diffusion | {"v_pred": torch.zeros(0)})
    return write(path, let_input_through(diffusion))


def sd3(path: Path) -> Path:
    """SD3 format (flow): MMDiT of depth 2 (hidden size 128) up to 128 px, 16-channel autoencoder, CLIP-L."""
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
    import comfy.ops

    depth, side = 2, 8
    model = mmdit.MMDiT(
        input_size=None, patch_size=2, in_channels=16, depth=depth, adm_in_channels=SD3_POOLED, qk_norm="rms",
        pos_embed_scaling_factor=None, num_patches=side * side, pos_embed_max_size=side,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": SD3_CONTEXT, "out_features": 64 * depth}},
        x_block_self_attn_layers=[], dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    diffusion = randomise(model, 3)
    diffusion["pos_embed"] = mmdit.get_2d_sincos_pos_embed_torch(64 * depth, side, side, device="cpu")[None].half()
    return write(
        path,
        with_prefix("model.diffusion_model.", diffusion)
        | with_prefix("first_stage_model.", autoencoder(16, 4))
        | with_prefix("text_encoders.clip_l.", clip_l()),
    )


def sdxl_conditioning(seed: int) -> list:
    """A random conditioning as CLIP-L and CLIP-G would give it (they are left out for their 818 M weights)."""
    stream = torch.Generator().manual_seed(seed)
    context = torch.randn(1, 77, SDXL_CONTEXT, generator=stream)
    return [[context, {"pooled_output": torch.randn(1, SDXL_POOLED, generator=stream)}]]


def sdxl_v_unet(path: Path) -> Path:
    return sdxl_unet(path, v_prediction=True)


BUILDERS: dict[str, Callable[[Path], Path]] = {"sd15": sd15, "sdxl_unet": sdxl_unet, "sdxl_v_unet": sdxl_v_unet, "sd3": sd3}


def write(path: Path, tensors: Tensors) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)
    return path


def cached(name: str) -> Path:
    """The file of ``BUILDERS[name]``, built again when this module or the text encoder's generator changes."""
    sources = Path(__file__).read_bytes() + (ROOT / "demo" / "weights.py").read_bytes()
    folder = ROOT / ".studio" / "tiny-models" / hashlib.sha256(sources).hexdigest()[:12]
    path = folder / f"{name}.safetensors"
    if not folder.exists():
        forget_old(folder.parent)
    return path if path.exists() else BUILDERS[name](path)


def forget_old(cache: Path, seconds: float = 86_400) -> None:
    """Remove what earlier versions of the sources left; younger ones may be in use by another run."""
    for folder in cache.glob("*/"):
        if time.time() - folder.stat().st_mtime > seconds:
            shutil.rmtree(folder, ignore_errors=True)


def link(source: Path, target: Path) -> Path:
    """``target`` as a hard link to ``source`` where the file system allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
    return target
