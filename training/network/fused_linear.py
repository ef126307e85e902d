"""Fused linear: a frozen Linear and the LoRA beside it as one autograd function.

Beside a layer, a branch costs more passes over memory than arithmetic: its product is added to a copy of the layer's output, and
backward its gradient to that of the layer. Here both are added where the layer's own product lies. And where the layer computes
in another format than its weight is stored in, autograd keeps the weight as it is stored and not the converted one: of all layers
together, that would be a second copy of the model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..tensors.autograd_context import AutogradContext

FORMATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STORED = (*FORMATS, torch.float8_e4m3fn, torch.float8_e5m2)
"""Number formats in which a weight is the number that counts."""
KEEPS_STORED = "keeps_stored"
"""Marks a forward pass that differs from the layer's own only in what autograd keeps for the way back."""
AUTOCASTS = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
"""Kinds of devices with autocast; asked once, since a graph that is traced could not ask."""
MAKERS = ("torch.nn.modules.linear", "comfy.ops")
"""Where the forward pass of a Linear comes from that is no more than that."""


def known(layer: nn.Module) -> bool:
    """Whether ``layer`` computes x W^T + b and nothing else: torch's Linear or the host's, and nobody has wrapped it."""
    own = layer.__dict__.get("forward")
    if not isinstance(layer, nn.Linear) or (own is not None and not hasattr(own, KEEPS_STORED)):
        return False
    ways = (type(layer).forward, getattr(type(layer), "forward_comfy_cast_weights", None))
    return all(way is None or way.__module__ in MAKERS for way in ways)


def plain(layer: nn.Module, x: Tensor) -> bool:
    """Whether its weight, as it is now, is all that is needed: not packed, scaled, patched on the way or still elsewhere."""
    own: Any = layer
    tensors = [t for t in (own.weight, own.bias) if t is not None]
    extras = ("weight_function", "bias_function", "scale_weight", "_v")
    return (
        type(x) is Tensor
        and x.ndim > 1
        and x.dtype in FORMATS
        and all(type(t) in (Tensor, nn.Parameter) and t.dtype in STORED for t in tensors)
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
    out: Tensor = _FusedLinear.apply(x, own.weight, own.bias, down, up, scale)
    return out.view(*x.shape[:-1], -1)


class _FusedContext(AutogradContext):
    scale: float


class _FusedLinear(torch.autograd.Function):
    """Gradients for x, down and up; weight and bias are frozen."""

    @staticmethod
    def forward(
        ctx: _FusedContext, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        """(rows, out), all dimensions of x but the last as one."""
        rows, kind = x.flatten(0, -2), x.dtype
        out = F.linear(rows, weight.to(kind), bias.to(kind) if bias is not None else None)
        hidden = rows @ down.to(kind).t()
        if torch.compiler.is_compiling():  # torch 2.11 makes of the product in place a gradient of zeros
            out = torch.addmm(out, hidden, up.to(kind).t(), alpha=scale)
        else:
            out.addmm_(hidden, up.to(kind).t(), alpha=scale)
        ctx.save_for_backward(x, weight, hidden, down, up)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: _FusedContext, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, hidden, down, up = ctx.saved_tensors
        kind = grad_output.dtype
        rows = x.flatten(0, -2)
        grad_hidden = (grad_output @ up.to(kind)).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_output @ weight.to(kind)).addmm_(grad_hidden, down.to(kind)).view(x.shape)
        grad_down = (grad_hidden.t() @ rows).to(down.dtype)
        grad_up = (grad_output.t() @ hidden).mul_(ctx.scale).to(up.dtype)
        return grad_x, None, None, grad_down, grad_up, None
