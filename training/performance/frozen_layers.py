"""Frozen layers with less kept for the backward pass: the host's numbers, for less memory and time.

**Kept as stored.** Where a layer computes in another format than its weight is stored in (fp8, or bf16 on a CPU), its product is
a ``frozen_product``.

**Convolutions on a CPU as plain matrix products, where the kernels are larger than the pictures.** oneDNN lays every kernel out
anew in each call. At the low resolutions of a UNet, where most of its weights are, that costs more than the convolution itself; a
product of the kernels as they lie with the unfolded picture does without it, and the layout that would spare it would be a second
copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ..network.frozen_product import STORED, frozen_product, stored
from ..network.fused_linear import FROZEN, known, plain
from ..tensors.autograd_context import AutogradContext
from ..tensors.method_patch import patched

LARGER = 8
"""From so many kernel numbers for each of the picture's on, the product is the faster way."""
Layer = Callable[..., Tensor]
Sides = tuple[int, ...]


@contextmanager
def lightened(modules: Iterable[nn.Module], computes_in: torch.dtype, device: torch.device) -> Iterator[None]:
    """While it lasts, Linear and Conv2d layers of ``modules`` choose in each pass; afterwards nothing of it is left on them."""
    layers = [m for m in modules if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight is not None]
    converting = [m for m in layers if m.weight.dtype != computes_in]
    # A layer that somebody else has changed already is left to them.
    linear = [m for m in converting if known(m)]
    pictures = [m for m in (layers if device.type == "cpu" else converting) if _plain(m) and "_conv_forward" not in m.__dict__]
    with patched(linear, "forward", _linear), patched(pictures, "_conv_forward", _convolution):
        yield


def _linear(layer: nn.Module, usual: Layer) -> Layer:
    own: Any = layer

    def forward(x: Tensor, *more: object, **named: object) -> Tensor:
        # Without a gradient too: some hosts would then multiply in fp8, and what is compared must be computed alike.
        if more or named or torch.is_inference_mode_enabled() or not plain(layer, x):
            return usual(x, *more, **named)
        return frozen_product(x, *stored(layer), own.bias)

    setattr(forward, FROZEN, True)
    return forward


def _plain(module: nn.Module) -> bool:
    """Whether it is a convolution that ``thnn_conv2d`` knows as well."""
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
        return False
    return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"


def _convolution(layer: Any, usual: Layer) -> Layer:
    """``layer``'s own convolution, given weight and bias as they are used now."""

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.ndim != 4:
            return usual(x, weight, bias)
        stored = _stored(layer, weight)
        if stored is not weight and x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Convolution.apply(x, weight, stored, bias, layer.stride, layer.padding)
            return out
        return _convolved(x, weight, bias, layer.stride, layer.padding)

    return convolve


def _stored(layer: Any, used: Tensor) -> Tensor:
    """What ``used`` was converted from and can be converted from again; else, as where more was done to it, itself."""
    own = layer.weight
    ordinary = type(own) in (Tensor, nn.Parameter) and own.dtype in STORED and own.device == used.device
    more = getattr(layer, "weight_function", None) or getattr(layer, "scale_weight", None) is not None
    return own if ordinary and not more and not own.requires_grad and own.dtype != used.dtype else used


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sides, padding: Sides) -> Tensor:
    if product_suits(x, weight):
        if torch.compiler.is_compiling():  # which does not know the operator
            return _unfolded(x, weight, bias, stride, padding)
        out: Tensor = torch.ops.aten.thnn_conv2d(x, weight, weight.shape[2:], bias, stride, padding)
        return out
    return F.conv2d(x, weight, bias, stride, padding)


def _unfolded(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sides, padding: Sides) -> Tensor:
    """What ``thnn_conv2d`` computes, in the same two steps."""
    sides = [(x.shape[i + 2] + 2 * padding[i] - weight.shape[i + 2]) // stride[i] + 1 for i in (0, 1)]
    product: Tensor = weight.flatten(1) @ F.unfold(x, weight.shape[2:], padding=padding, stride=stride)
    out = product.view(*product.shape[:2], *sides)
    return out if bias is None else out + bias.view(-1, 1, 1)


class _ConvolutionContext(AutogradContext):
    shape: torch.Size
    stride: Sides
    padding: Sides
    product: bool


class _Convolution(torch.autograd.Function):
    """The gradient for x (B, in, H, W); ``stored`` is what ``weight`` was converted from."""

    @staticmethod
    def forward(
        ctx: _ConvolutionContext, x: Tensor, weight: Tensor, stored: Tensor, bias: Tensor | None, stride: Sides, padding: Sides
    ) -> Tensor:
        ctx.save_for_backward(stored)
        ctx.shape, ctx.stride, ctx.padding, ctx.product = x.shape, stride, padding, product_suits(x, weight)
        return _convolved(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: _ConvolutionContext, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (stored,) = ctx.saved_tensors
        weight = stored.to(grad_output.dtype)
        if ctx.product:
            columns = weight.flatten(1).t() @ grad_output.flatten(2)
            grad_x = F.fold(columns, ctx.shape[2:], weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        else:
            grad_x = conv2d_input(ctx.shape, weight, grad_output, ctx.stride, ctx.padding)
        return grad_x, None, None, None, None, None


def product_suits(x: Tensor, weight: Tensor) -> bool:
    """Whether the product is the faster way: full precision on a CPU, and kernels that outweigh the pictures."""
    full = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    return full and weight.numel() >= LARGER * x.numel()
