"""Convolutions on a CPU as plain matrix products, where the kernels are larger than the pictures.

oneDNN lays every kernel out anew in each call. At the low resolutions of a UNet, where most of its weights are, that costs more
than the convolution itself; a product of the kernels as they lie with the unfolded picture does without it, and the layout that
would spare it would be a second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .stand_in import replaced

LARGER = 8
"""From so many kernel numbers for each of the picture's on, the product is the faster way."""
Convolve = Callable[..., Tensor]


@contextmanager
def as_products(root: nn.Module) -> Iterator[None]:
    """While it lasts, the Conv2d layers under ``root`` choose for each picture; afterwards nothing of it is left on them."""
    # A layer that somebody else has changed already is left to them.
    layers = [module for module in root.modules() if _plain(module) and "_conv_forward" not in module.__dict__]
    with replaced(layers, "_conv_forward", _choosing):
        yield


def _plain(module: nn.Module) -> bool:
    """Whether it is a convolution that ``thnn_conv2d`` knows as well."""
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
        return False
    return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"


def _choosing(layer: Any, usual: Convolve) -> Convolve:
    """``layer``'s own convolution, given weight and bias as they are used now."""

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not product_suits(x, weight):
            return usual(x, weight, bias)
        return torch.ops.aten.thnn_conv2d(x, weight, layer.kernel_size, bias, layer.stride, layer.padding)

    return convolve


def product_suits(x: Tensor, weight: Tensor) -> bool:
    """Whether the product is the faster way: full precision on a CPU, and kernels that outweigh the pictures."""
    full = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    return full and x.ndim == 4 and weight.numel() >= LARGER * x.numel()
