"""Quantised frozen layers: gradients through weights that the host keeps packed (fp8, int8, nvfp4, mxfp8, ConvRot).

The host's own products of packed weights are made for sampling. They round the input to as few bits as the weight has, and there
is no sound way back through them: fp8, mxfp8 and nvfp4 on a GPU keep what autograd refuses, ConvRot W4A4 has no product with the
other side, int8 rounds the gradient as well, and a bank of experts lets none through without any error. Where they unpack the
weight instead, autograd keeps the unpacked one: of all layers together, a second model of two to eight times the size.

Here a layer multiplies with the numbers that its weight stands for, in the input's own format, and autograd keeps the weight as
it is stored. Passes without a gradient do the same, since they are compared with others: a validation's loss, the answer that a
preserved model gave before. Only what is sampled (in inference mode) is computed as the host does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..network.base_layer import bias_of, is_linear, layout_of, unpacked
from ..network.fused_linear import MAKERS
from ..tensors.autograd_context import AutogradContext
from ..tensors.method_patch import patched

Layer = Callable[..., Tensor]
Change = Callable[[Tensor], Tensor]


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
        changes = [*getattr(layer, "weight_function", ())]
        if scale is not None:
            changes.append(lambda weight: (weight * scale.to(weight.device)).to(weight.dtype))
        return product(x, own.weight, bias_of(layer, x), changes)

    return forward


def _expert(bank: nn.Module, usual: Layer) -> Layer:
    own: Any = bank

    def expert_linear(x: Tensor, i: int) -> Tensor:
        if not _asked(bank, x) or own.weight_function:
            return usual(x, i)
        bias = bias_of(bank, x)
        return product(x, own.expert_weight(i), None if bias is None else bias[i])

    return expert_linear


def _asked(module: nn.Module, x: Tensor) -> bool:
    """Whether it is for us: an ordinary input, outside of sampling, and a weight that is still packed."""
    return type(x) is Tensor and not torch.is_inference_mode_enabled() and _packed(module)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, changes: Sequence[Change] = ()) -> Tensor:
    """x W^T + b for x (..., in) and a packed weight (out, in), W being what ``changes`` make of its numbers one after another."""
    # A view made inside the step could not be changed in place by the network afterwards.
    out: Tensor = _Product.apply(x, _anew(weight), bias, tuple(changes))
    return out.view(*x.shape[:-1], -1)


def _anew(weight: Tensor) -> Tensor:
    """The same parts in another wrapper, which autograd can keep whichever mode the first one was made in."""
    source: Any = weight
    if not layout_of(weight):
        return weight
    names, rest = source.__tensor_flatten__()
    parts = {name: getattr(source, name) for name in names}
    made: Tensor = type(source).__tensor_unflatten__(parts, rest, source.size(), source.stride())
    return made


class _ProductContext(AutogradContext):
    shape: torch.Size
    changes: tuple[Change, ...]


class _Product(torch.autograd.Function):
    """The gradient for x; (rows, out), all dimensions of x (..., in) but the last as one."""

    @staticmethod
    def forward(ctx: _ProductContext, x: Tensor, weight: Tensor, bias: Tensor | None, changes: tuple[Change, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.changes = x.shape, changes
        return F.linear(x.reshape(-1, x.shape[-1]), _whole(weight, x, changes), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _ProductContext, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return (grad_output @ _whole(weight, grad_output, ctx.changes)).view(ctx.shape), None, None, None


def _whole(weight: Tensor, like: Tensor, changes: Sequence[Change]) -> Tensor:
    whole = unpacked(weight.to(like.device), like.dtype)
    for change in changes:
        whole = change(whole)
    return whole
