"""Frozen product: x W^T + b for a weight W that learns nothing, in whichever way it is stored.

Where a layer computes in another format than its weight is stored in, autograd would keep the converted weight until the backward
pass; of all layers together, a second copy of the model, or a third and fourth where it is packed. Here it keeps the weight as it
is stored, which costs nothing, and converts it once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..tensors import eight_bits
from ..tensors.autograd_context import AutogradContext
from .base_layer import LAYOUTS, layout_of, unpacked

FORMATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STORED = (*FORMATS, torch.float8_e4m3fn, torch.float8_e5m2)
"""Number formats in which a weight is the number that counts."""
SCALED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
"""Number formats that a scale may stand beside."""
Change = Callable[[Tensor], Tensor]


def stored(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight of a Linear as it is stored, and the scale beside it, in a form that autograd can keep."""
    own: Any = layer
    return keepable(own.weight), getattr(layer, "scale_weight", None)


def is_clear(weight: Tensor, scale: Tensor | None) -> bool:
    """Whether ``matrix`` is known to be what they stand for: numbers, of which a row or all may have one scale, or a packing."""
    if layout_of(weight):
        return scale is None and layout_of(weight) in LAYOUTS
    if type(weight) not in (Tensor, nn.Parameter):
        return False
    if scale is None:
        return weight.dtype in STORED
    return weight.dtype in SCALED and (scale.numel() == 1 or scale.shape == (len(weight), 1))


def matrix(weight: Tensor, scale: Tensor | None, like: Tensor, changes: Sequence[Change] = ()) -> Tensor:
    """W (out, in), in the number format and on the device of ``like``: what ``changes`` make of the weight, times ``scale``."""
    weight = weight.to(like.device)
    scale = None if scale is None else scale.to(like.device)
    if scale is not None and not changes:
        return eight_bits.meant(weight, scale, like.dtype)
    whole = unpacked(weight, like.dtype)
    if changes and whole is weight:  # they may work in place
        whole = whole.clone()
    for change in changes:
        whole = change(whole)
    return whole if scale is None else (whole * scale).to(like.dtype)


def multiplied(
    rows: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None = None,
    changes: Sequence[Change] = (),
) -> Tensor:
    """rows W^T + b, (rows, out), in ``out`` if it is given; with the device's products in eight bits where these are faster."""
    bias = None if bias is None else bias.to(rows.dtype)
    # Only a scale a row is ours: who loads a model in eight bits has not asked for its inputs to be rounded as well.
    ours = scale if scale is not None and scale.shape == (len(weight), 1) and not changes else None
    if ours is not None and eight_bits.is_faster(rows, weight):
        product = eight_bits.eight_bit_product(rows, weight, ours)
        if out is None:
            return product if bias is None else product.add_(bias)
        return out.copy_(product) if bias is None else torch.add(product, bias, out=out)
    columns = matrix(weight, scale, rows, changes)
    if out is None:
        return F.linear(rows, columns, bias)
    return torch.mm(rows, columns.t(), out=out) if bias is None else torch.addmm(bias, rows, columns.t(), out=out)


def frozen_product(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, changes: Sequence[Change] = ()
) -> Tensor:
    """x W^T + b for x (..., in), in its number format; W is ``matrix`` of the others."""
    # A view made inside the step could not be changed in place by the network afterwards.
    out: Tensor = _FrozenProduct.apply(x, keepable(weight), scale, bias, tuple(changes))
    return out.view(*x.shape[:-1], -1)


class _Context(AutogradContext):
    shape: torch.Size
    changes: tuple[Change, ...]


class _FrozenProduct(torch.autograd.Function):
    """The gradient for x; (rows, out), all dimensions of x (..., in) but the last as one."""

    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, changes: tuple[Change, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.shape, ctx.changes = x.shape, changes
        return multiplied(x.reshape(-1, x.shape[-1]), weight, scale, bias, changes=changes)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        return (grad_output @ matrix(weight, scale, grad_output, ctx.changes)).view(ctx.shape), None, None, None, None


def keepable(weight: Tensor) -> Tensor:
    """``weight``; if it is packed, its parts in another wrapper, which autograd can keep whichever mode the first was made in."""
    source: Any = weight
    if not layout_of(weight):
        return weight
    names, rest = source.__tensor_flatten__()
    parts = {name: getattr(source, name) for name in names}
    made: Tensor = type(source).__tensor_unflatten__(parts, rest, source.size(), source.stride())
    return made
