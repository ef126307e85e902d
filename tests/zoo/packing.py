"""Tiny models in the quantised formats that ComfyUI loads: files as its converters write them, loaded by its own loader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from .build import Animal
from .recipes import Recipe

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """One way to store the weights of a diffusion model."""

    name: str
    """As it stands in docs/models.md."""
    algorithm: str = ""
    """What a layer's ``comfy_quant`` names; empty for what is older than that."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else ``comfy_quant`` says."""
    layout: str = ""
    """The class that packs it."""
    packs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the packing."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The loader's own, in place of a file in that format."""
    scaled: int | None = None
    """Numbers in the file's ``scaled_fp8``: with two the host multiplies in full precision."""


E4M3, CONVROT = "TensorCoreFP8E4M3Layout", {"convrot_groupsize": 64}
FORMATS = [
    Format("fp8 e4m3, by the loader", options={"dtype": FP8}),
    Format("fp8 e4m3 fast, by the loader", options={"dtype": FP8, "fp8_optimizations": True}),
    Format("fp8 e5m2, by the loader", options={"dtype": torch.float8_e5m2}),
    Format("fp8 scaled, older files", scaled=2),
    Format("fp8 scaled, older files, fp8 products", scaled=0),
    Format("fp8 e4m3 scaled", "float8_e4m3fn", layout=E4M3, packs={"scale": "recalculate"}),
    Format("fp8 e5m2 scaled", "float8_e5m2", layout="TensorCoreFP8E5M2Layout", packs={"scale": "recalculate"}),
    Format("mxfp8", "mxfp8", layout="TensorCoreMXFP8Layout"),
    Format("nvfp4", "nvfp4", layout="TensorCoreNVFP4Layout"),
    Format("int8, one scale", "int8_tensorwise", layout="TensorWiseINT8Layout"),
    Format("int8, a scale a row", "int8_tensorwise", layout="TensorWiseINT8Layout", packs={"per_channel": True}),
    Format(
        "int8 ConvRot", "int8_tensorwise", {"convrot": True, **CONVROT}, "TensorWiseINT8Layout",
        {"per_channel": True, "convrot": True, **CONVROT},
    ),
    Format("convrot_w4a4", "convrot_w4a4", CONVROT, "TensorCoreConvRotW4A4Layout", CONVROT),
    Format(
        "convrot_w4a4, int8 products", "convrot_w4a4", {**CONVROT, "linear_dtype": "int8"}, "TensorCoreConvRotW4A4Layout",
        {**CONVROT, "linear_dtype": "int8"},
    ),
]  # fmt: skip


def packed(name: str, tensor: Tensor) -> bool:
    """Whether converters pack it: the matrices of the blocks, the first and last layers staying as they are."""
    return "_blocks." in name and name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] % 64 == 0


def stored(form: Format, tensors: Tensors) -> tuple[Tensors, dict[str, str] | None, Tensors]:
    """A file in that format with its metadata, and the float32 weights that it stands for."""
    meant = {name: tensor.float() for name, tensor in tensors.items()}
    if form.options:
        dtype = form.options["dtype"]
        return dict(tensors), None, {name: tensor.to(dtype).float() for name, tensor in meant.items()}
    out = dict(tensors)
    if form.scaled is not None:
        out["scaled_fp8"] = torch.zeros(form.scaled, dtype=FP8)
        # Those files leave out no layer.
        for name in [name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.ndim == 2]:
            layer = name.removesuffix("weight")
            out[name], out[layer + "scale_weight"], meant[name] = _scaled(tensors[name])
            if layer + "bias" in out and not _reads_keys():  # an older host makes a bias what it makes the weight
                meant[layer + "bias"] = out[layer + "bias"].to(FP8).float()
        return out, None, meant
    layers = [name.removesuffix("weight") for name, tensor in tensors.items() if packed(name, tensor)]
    told = {"format": form.algorithm, **form.more}
    for layer in layers:
        parts, meant[layer + "weight"] = _by_the_host(form, tensors[layer + "weight"])
        out.update({layer + name: part for name, part in parts.items()})
        if _reads_keys():
            out[layer + "comfy_quant"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    by_layer = {layer.removesuffix("."): told for layer in layers}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": by_layer})}
    return out, None if _reads_keys() else metadata, meant


def _scaled(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers in fp8, what to multiply them with, and the product."""
    scale = tensor.abs().max() / LARGEST
    numbers = (tensor / scale).to(FP8)
    return numbers, scale, numbers.float() * scale


def _by_the_host(form: Format, tensor: Tensor) -> tuple[Tensors, Tensor]:
    """A layer's entries in a file, and its weight; the oldest host packs nothing itself, but has fp8 with one scale."""
    from comfy import quant_ops

    if not _reads_keys():
        numbers, scale, meant = _scaled(tensor)
        return {"weight": numbers, "weight_scale": scale}, meant
    whole = quant_ops.QuantizedTensor.from_float(tensor.float(), form.layout, **form.packs)
    return whole.state_dict("weight"), whole.dequantize()


def _reads_keys() -> bool:
    """Whether the host reads ``comfy_quant`` beside each layer; before, it stood in the file's metadata."""
    import comfy.utils

    return hasattr(comfy.utils, "detect_layer_quantization")


def present(form: Format) -> Format:
    """``form``, if this host has it."""
    from comfy import quant_ops

    if form.algorithm and form.algorithm not in quant_ops.QUANT_ALGOS:
        pytest.skip(f"this ComfyUI has no {form.algorithm}")
    return form


def loaded(
    recipe: Recipe, tensors: Tensors, metadata: dict[str, str] | None = None, options: Mapping[str, object] | None = None
) -> Animal:
    """As a stock loader makes it, in a graph."""
    import comfy.sd
    from lora_atelier.training import host

    with torch.inference_mode():
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        more = {} if metadata is None else {"metadata": dict(metadata)}
        patcher = comfy.sd.load_diffusion_model_state_dict(copies, model_options=dict(options or {}), **more)
    return Animal(recipe, host.Model(patcher), True)
