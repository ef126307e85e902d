"""Fused linear: a frozen Linear and the LoRA beside it as one autograd function.

Beside a layer, a branch costs more passes over memory than arithmetic: its product is added to a copy of the layer's output, and
backward its gradient to that of the layer. Here both are added where the layer's own product lies. Layers that read the same
tensor share the products of their LoRAs, and add up the gradients of what they read in one place. The layer's own weight may be
stored in any way that a ``frozen_product`` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..tensors.autograd_context import AutogradContext
from .base_layer import is_linear, layout_of
from .frozen_product import FORMATS, is_clear, matrix, multiplied, stored

FROZEN = "frozen_product"
"""Marks a forward pass of a Linear that is a ``frozen_product`` and no more."""
AUTOCASTS = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
"""Kinds of devices with autocast; asked once, since a graph that is traced could not ask."""
MAKERS = ("torch.nn.modules.linear", "comfy.ops")
"""Where the forward pass of a Linear comes from that is no more than that."""


def known(layer: nn.Module) -> bool:
    """Whether ``layer`` computes x W^T + b and nothing else: torch's Linear or the host's, and nobody has wrapped it."""
    own = layer.__dict__.get("forward")
    if not is_linear(layer) or (own is not None and not hasattr(own, FROZEN)):
        return False
    ways = (type(layer).forward, getattr(type(layer), "forward_comfy_cast_weights", None))
    return all(way is None or way.__module__ in MAKERS for way in ways)


def plain(layer: nn.Module, x: Tensor) -> bool:
    """Whether its weight, as it is now, is all that is needed: not patched on the way or still elsewhere, and not in a packing
    that would have to be traced.
    """
    own: Any = layer
    scale = getattr(own, "scale_weight", None)
    tensors = [t for t in (own.weight, own.bias, scale) if t is not None]
    extras = ("weight_function", "bias_function", "pre_quant_scale", "_v")
    return (
        type(x) is Tensor
        and x.ndim > 1
        and x.dtype in FORMATS
        and is_clear(own.weight, scale)
        and not (torch.compiler.is_compiling() and layout_of(own.weight))
        and not any(t.requires_grad or t.device != x.device for t in tensors)
        and not any(_given(getattr(own, name, None)) for name in extras)
        and not (x.device.type in AUTOCASTS and torch.is_autocast_enabled(x.device.type))
    )


def _given(value: object) -> bool:
    return value is not None and not (isinstance(value, list) and not value)


def linear(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x W^T + b + scale * (x down^T) up^T for x (..., in), in x's number format."""
    own: Any = layer
    # A view made inside the step could not be changed in place by the network afterwards.
    out: Tensor = _FusedLinear.apply(x, *stored(layer), own.bias, down, up, scale)
    return out.view(*x.shape[:-1], -1)


class _FusedContext(AutogradContext):
    scale: float


class _FusedLinear(torch.autograd.Function):
    """Gradients for x, down and up; weight and bias are frozen."""

    @staticmethod
    def forward(
        ctx: _FusedContext,
        x: Tensor,
        weight: Tensor,
        weight_scale: Tensor | None,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        """(rows, out), all dimensions of x but the last as one."""
        rows, kind = x.flatten(0, -2), x.dtype
        out = multiplied(rows, weight, weight_scale, bias)
        hidden = rows @ down.to(kind).t()
        if torch.compiler.is_compiling():  # torch 2.11 makes of the product in place a gradient of zeros
            out = torch.addmm(out, hidden, up.to(kind).t(), alpha=scale)
        else:
            out.addmm_(hidden, up.to(kind).t(), alpha=scale)
        ctx.save_for_backward(x, weight, weight_scale, hidden, down, up)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: _FusedContext, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, weight_scale, hidden, down, up = ctx.saved_tensors
        kind = grad_output.dtype
        rows = x.flatten(0, -2)
        grad_hidden = _scaled(grad_output @ up.to(kind), ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output @ matrix(weight, weight_scale, grad_output)
            grad_x = grad_x.addmm_(grad_hidden, down.to(kind)).view(x.shape)
        grad_down = (grad_hidden.t() @ rows).to(down.dtype)
        grad_up = _scaled(grad_output.t() @ hidden, ctx.scale).to(up.dtype)
        return grad_x, None, None, None, grad_down, grad_up, None


def _scaled(made: Tensor, scale: float) -> Tensor:
    """``made``, changed itself; most often the scale lies in the down-matrix already, and nothing is to be done."""
    return made if scale == 1.0 else made.mul_(scale)


def shared_linear(layers: Sequence[nn.Module], x: Tensor, down: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x W^T + b + (x down^T) up^T of each of ``layers`` for x (..., in), in x's number format.

    ``down`` (layers * rank, in) holds the down-matrices one after another, scales in them; ``ups`` are stacks (count, out, rank)
    of the up-matrices of neighbours, in the same order. All in x's number format.
    """
    own: Any = layers
    frozen = [tensor for layer in own for tensor in (*stored(layer), layer.bias)]
    made = _SharedLinear.apply(x, down, len(ups), *ups, *frozen)
    return tuple(out.view(*x.shape[:-1], -1) for out in made)


class _SharedContext(AutogradContext):
    stacks: int


class _SharedLinear(torch.autograd.Function):
    """Gradients for x, down and ups; weights, the scales beside them and biases, in turns, are frozen."""

    @staticmethod
    def forward(ctx: _SharedContext, x: Tensor, down: Tensor, stacks: int, *rest: Tensor | None) -> tuple[Tensor, ...]:
        """(rows, out) for each layer, all dimensions of x but the last as one."""
        every: Any = rest
        ups, weights, scales, biases = every[:stacks], every[stacks::3], rest[stacks + 1 :: 3], rest[stacks + 2 :: 3]
        rows, rank, outs = x.flatten(0, -2), ups[0].shape[2], list[Tensor]()
        hidden = rows @ down.t()
        for up in ups:
            first, (count, outputs, _) = len(outs), up.shape
            whole = x.new_empty((count, len(rows), outputs))
            for i in range(count):
                multiplied(rows, weights[first + i], scales[first + i], biases[first + i], out=whole[i])
            narrow = hidden[:, first * rank : (first + count) * rank]
            if count == 1:
                whole[0].addmm_(narrow, up[0].t())
            else:
                whole.baddbmm_(narrow.view(-1, count, rank).transpose(0, 1), up.transpose(1, 2))
            # The network may change each in place, which it may not do to a view that was made in here.
            outs += [whole[i].data for i in range(count)]
        ctx.save_for_backward(x, down, hidden, *ups, *weights, *scales)
        ctx.stacks = stacks
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: _SharedContext, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, down, hidden, *rest = ctx.saved_tensors
        ups, frozen = rest[: ctx.stacks], rest[ctx.stacks :]
        weights, scales = frozen[: len(gradients)], frozen[len(gradients) :]
        rows, rank = x.flatten(0, -2), ups[0].shape[2]
        sides = [slice(i * rank, (i + 1) * rank) for i in range(len(weights))]
        grad_hidden, grad_ups, grad_x = torch.empty_like(hidden), [torch.empty_like(up) for up in ups], None
        singles = [(up[i], grad_up[i]) for up, grad_up in zip(ups, grad_ups, strict=True) for i in range(len(up))]
        for gradient, weight, scale, side, (up, grad_up) in zip(gradients, weights, scales, sides, singles, strict=True):
            if gradient is None:
                grad_hidden[:, side].zero_()
                grad_up.zero_()
                continue
            torch.mm(gradient, up, out=grad_hidden[:, side])
            torch.mm(gradient.t(), hidden[:, side], out=grad_up)
            if ctx.needs_input_grad[0]:
                weight = matrix(weight, scale, gradient)
                grad_x = gradient @ weight if grad_x is None else grad_x.addmm_(gradient, weight)
        if ctx.needs_input_grad[0]:
            grad_x = grad_hidden @ down if grad_x is None else grad_x.addmm_(grad_hidden, down)
            grad_x = grad_x.view(x.shape)
        return grad_x, grad_hidden.t() @ rows, None, *grad_ups, *[None] * (3 * len(weights))
