"""Base layer: a frozen layer's kind, shape and, for the few algorithms that need them, weight and bias.

A quantised layer need not be torch's own class, so only attributes count. Every way of storing a weight is undone here and
nowhere else.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AtelierError
from ..tensors.inference_tensors import ordinary

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (
    "TensorCoreFP8Layout", "TensorCoreFP8E4M3Layout", "TensorCoreFP8E5M2Layout", "TensorCoreMXFP8Layout", "TensorCoreNVFP4Layout",
    "TensorWiseINT8Layout", "TensorCoreConvRotW4A4Layout",
)  # fmt: skip
"""The host's packings that were tried: each stands for a matrix, and the host can pack one anew with a LoRA in it."""


def is_conv(layer: nn.Module) -> bool:
    return hasattr(layer, "kernel_size") and getattr(layer.weight, "ndim", 0) == 4 and getattr(layer, "groups", 1) == 1


def is_linear(layer: nn.Module) -> bool:
    """True for Linear layers of any kind, quantised ones included, which need not derive from ``nn.Linear``.

    A bank of experts has the same names, but is never called as a whole.
    """
    names = ("in_features", "out_features", "weight")
    return all(hasattr(layer, name) for name in names) and not hasattr(layer, "num_experts")


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """(out, in), or (out, in, kh, kw) for a convolution; a packed weight's own shape may be another."""
    source: Any = layer
    if is_conv(layer):
        return (source.out_channels, source.in_channels, *source.kernel_size)
    return (source.out_features, source.in_features)


def layout_of(weight: object) -> str:
    """What the host calls the way in which it has packed ``weight``; empty for an ordinary tensor and for others' packings."""
    found = getattr(weight, "_layout_cls", None) or getattr(weight, "_layout_type", None)
    return found if isinstance(found, str) and hasattr(weight, "__tensor_flatten__") else ""


def refusal(layer: nn.Module) -> str:
    """Why nothing can be trained rightly beside ``layer``, as far as its own weight tells; empty if nothing is known of that."""
    layout = layout_of(getattr(layer, "weight", None))
    if layout and layout not in LAYOUTS:
        return f"its weights are packed in a format ({layout}) that is not trained here. Load it in bf16, fp16, fp8 or int8."
    if layout and getattr(layer, "pre_quant_scale", None) is not None:
        return (
            "its quantised layers rescale what they are given (pre_quant_scale), and ComfyUI applies a LoRA behind that, so that "
            "it would draw something else than was trained. Load it in bf16, fp16, fp8 or int8."
        )
    return ""


def unpacked(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that a packed or ordinary weight stands for, as ``dtype``."""
    if not layout_of(weight):
        return weight.to(dtype)
    # Where the wrapper names the format that it unpacks to, it is asked for this one and nothing is rounded twice; older hosts'
    # names the one it is stored in.
    asked = weight.to(dtype) if weight.dtype in FLOATS else weight
    plain: Tensor = asked.dequantize()
    return plain.to(dtype)


def weight_of(layer: nn.Module, device: torch.device) -> Tensor:
    """The weight that ``layer`` computes with, in ``weight_shape``, as fp32, bf16 or fp16.

    No copy is made of an ordinary weight that lies on ``device``; a quantised one is unpacked for this call only. Patches that
    the host applies as it computes are applied here too.
    """
    source: Any = layer
    weight = ordinary(source.weight).detach().to(device)
    if weight.is_quantized or type(weight) not in (Tensor, nn.Parameter):
        with suppress(RuntimeError, NotImplementedError):  # a packing that cannot undo itself is refused below
            weight = weight.dequantize()
    scale = getattr(source, "scale_weight", None)
    if scale is not None:
        weight = weight.float()
    if not weight.is_floating_point() or weight.numel() != torch.Size(weight_shape(layer)).numel():
        raise AtelierError(
            f"weight decompose: the weights of this model ({type(layer).__name__}, {weight.dtype}) cannot be read back. "
            "Switch weight decompose off, or load the model in fp16, bf16 or fp8."
        )
    if weight.dtype not in FLOATS:
        weight = weight.float()
    changes = getattr(source, "weight_function", None)
    if changes:  # they may work in place, and this may be the layer's own
        weight = weight.clone()
        for change in changes:
            weight = change(weight)
    if scale is not None:  # as the host does it: it lays its patches on what is stored
        weight = weight * scale.to(device, torch.float32)
    return weight.reshape(weight_shape(layer))


def bias_of(layer: nn.Module, like: Tensor) -> Tensor | None:
    """The bias that ``layer`` adds, in the type and on the device of ``like``; None when it has none."""
    source: Any = layer
    bias = getattr(source, "bias", None)
    if bias is None:
        return None
    bias = ordinary(bias).detach().to(like.device, like.dtype)
    changes = getattr(source, "bias_function", None)
    if changes:  # they may work in place, and this may be the layer's own
        bias = bias.clone()
        for change in changes:
            bias = change(bias)
    return bias
