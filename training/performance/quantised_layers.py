"""Quantised frozen layers: gradients through weights that the host keeps packed (fp8, int8, nvfp4, mxfp8, ConvRot).

The host's own products of packed weights are made for sampling. They round the input to as few bits as the weight has, and there
is no sound way back through them: fp8, mxfp8 and nvfp4 on a GPU keep what autograd refuses, ConvRot W4A4 has no product with the
other side, int8 rounds the gradient as well, and a bank of experts lets none through without any error. Where they unpack the
weight instead, autograd keeps the unpacked one: of all layers together, a second model of two to eight times the size.

Here a layer multiplies with the numbers that its weight stands for, in the input's own format (a ``frozen_product``). Passes
without a gradient do the same, since they are compared with others: a validation's loss, the answer that a preserved model gave
before. Only what is sampled (in inference mode) is computed as the host does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..network.base_layer import bias_of, is_linear, layout_of
from ..network.frozen_product import frozen_product
from ..network.fused_linear import FROZEN, MAKERS
from ..tensors.method_patch import patched

Layer = Callable[..., Tensor]


@contextmanager
def unpacking(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While it lasts, the host's layers with packed weights among ``modules`` pass gradients on; nothing stays on them."""
    packed = [m for m in modules if _packed(m)]
    # A layer that somebody else has changed already is left to them.
    layers = [m for m in packed if is_linear(m) and "forward" not in m.__dict__ and type(m).forward.__module__ in MAKERS]
    banks = [m for m in packed if hasattr(m, "expert_linear") and hasattr(m, "expert_weight")]
    with patched(layers, "forward", _linear), patched(banks, "expert_linear", _expert):
        yield


def _packed(module: nn.Module) -> bool:
    """Whether its weight is packed, or is to be multiplied with a scale beside it, as older hosts have it."""
    return bool(layout_of(getattr(module, "weight", None))) or getattr(module, "scale_weight", None) is not None


def _linear(layer: nn.Module, usual: Layer) -> Layer:
    own: Any = layer

    def forward(x: Tensor, *more: object, **named: object) -> Tensor:
        if more or named or not _asked(layer, x):
            return usual(x, *more, **named)
        scale = getattr(layer, "scale_weight", None)
        return frozen_product(x, own.weight, scale, bias_of(layer, x), getattr(layer, "weight_function", ()))

    setattr(forward, FROZEN, True)
    return forward


def _expert(bank: nn.Module, usual: Layer) -> Layer:
    own: Any = bank

    def expert_linear(x: Tensor, i: int) -> Tensor:
        if not _asked(bank, x) or own.weight_function:
            return usual(x, i)
        bias = bias_of(bank, x)
        return frozen_product(x, own.expert_weight(i), None, None if bias is None else bias[i])

    return expert_linear


def _asked(module: nn.Module, x: Tensor) -> bool:
    """Whether it is for us: an ordinary input, outside of sampling, and a weight that is still packed."""
    return type(x) is Tensor and not torch.is_inference_mode_enabled() and _packed(module)
