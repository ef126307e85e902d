"""The model's large matrices in eight bits for as long as it is trained: half of the memory, for weights that are rounded.

What is held so are the Linear layers inside the blocks. Left as they are: norms, embeddings, whatever is told the time, first and
last layers, as in other trainers (diffusers' layerwise casting, musubi-tuner's scaled fp8). Of these some leave out the layers of
blocks that make scales and shifts as well; they are held here, being a quarter of Flux for a tenth more of an error.

The model's own tensors are only read. While it lasts, numbers in eight bits stand in their places, and beside them a buffer
``scale_weight``, the host's own name for it; so whoever asks a layer for its weights or counts bytes is told what is there.
The layers' products are ``frozen_product``s: the way back multiplies with the numbers that the eight bits stand for, in the
gradient's format; the way there does too, or where the device is faster so, with the input rounded to eight bits as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import counted
from ..network.base_layer import FLOATS, bias_of, layout_of, weight_of
from ..network.frozen_product import frozen_product
from ..network.fused_linear import FROZEN, known
from ..tensors.eight_bits import EightBits, rounded, try_products
from ..tensors.method_patch import patched

SMALLEST, NARROWEST = 4096, 64
"""Numbers of a matrix, and of one of its rows, below which nothing worth it is saved."""
LEFT_OUT = re.compile(r"norm|emb(?![a-z])|embed|time|guidance|pos_")
"""In a layer's name inside its block."""
NO_BLOCKS = re.compile(r"embed|modulat|guidance")
"""In the name of a block's class: what stands in a list as blocks do, and is none."""
SCALE = "scale_weight"
GB = 10**9


def chosen(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers of ``blocks`` whose weights can be held in eight bits and are in more now."""
    return [layer for block in blocks for layer in _candidates(block) if _is_wide(layer)]


def _candidates(block: nn.Module) -> list[nn.Module]:
    if NO_BLOCKS.search(type(block).__name__.lower()):
        return []
    inside = ((name, module) for name, module in block.named_modules() if not LEFT_OUT.search(name.lower()))
    return [m for _, m in inside if hasattr(m, "in_features") and hasattr(m, "out_features") and hasattr(m, "weight")]


def _is_wide(layer: nn.Module) -> bool:
    weight: Any = layer.weight
    whole = type(weight) in (Tensor, nn.Parameter) and weight.ndim == 2 and weight.dtype in FLOATS
    large = whole and weight.numel() >= SMALLEST and weight.shape[1] >= NARROWEST
    return large and known(layer) and getattr(layer, SCALE, None) is None


def spared(block: nn.Module) -> int:
    """Bytes that its weights take less in eight bits."""
    weights: list[Any] = [layer.weight for layer in chosen([block])]
    return sum(w.nbytes - w.numel() - 4 * w.shape[0] for w in weights)


def remark(blocks: Sequence[nn.Module], kind: EightBits) -> str:
    """What comes of holding the model in ``kind``, for the person."""
    layers: list[Any] = chosen(blocks)
    if layers:
        before, less = sum(layer.weight.nbytes for layer in layers), sum(map(spared, blocks))
        return (
            f"base_weights: while it trains, {counted(len(layers), 'layer')} of the model "
            f"{'is' if len(layers) == 1 else 'are'} held in {kind}, in "
            f"{(before - less) / GB:.3g} instead of {before / GB:.3g} GB; the model itself stays as it is"
        )
    others: list[Any] = [layer.weight for block in blocks for layer in _candidates(block)]
    if any(layout_of(weight) or (isinstance(weight, Tensor) and weight.element_size() == 1) for weight in others):
        return f"base_weights: {kind} changes nothing, since this model is stored in 8 bits or fewer already"
    return f"base_weights: {kind} changes nothing, since this model has no layers that could be held so"


@contextmanager
def in_eight_bits(
    blocks: Sequence[nn.Module], kind: EightBits, device: torch.device, away: Collection[nn.Module] = ()
) -> Iterator[None]:
    """While it lasts, the ``chosen`` layers of ``blocks`` are held in ``kind`` on ``device``, those of ``away`` in main
    memory. What the host lays on a weight as it computes (a LoRA of the graph) is in the numbers that are rounded.
    """
    elsewhere = {layer for block in away for layer in block.modules()}
    layers = chosen(blocks)
    if layers:
        try_products(device, kind)
    homes: list[tuple[nn.Module, Any, Any]] = []
    hidden = [layer for layer in layers if SCALE in layer.__dict__]  # where some hosts keep None, which would be found first
    try:
        for layer in layers:
            home = layer._parameters["weight"]
            with torch.no_grad():
                numbers, scale = rounded(weight_of(layer, device), kind)
                if layer in elsewhere:
                    numbers, scale = numbers.cpu(), scale.cpu()
            homes.append((layer, home, getattr(layer, "weight_function", None)))
            if homes[-1][2]:  # what it lays on a weight is in the numbers, and whoever reads them would add it again
                setattr(layer, "weight_function", [])  # noqa: B010 - the host's, unknown to torch's Module
            layer._parameters["weight"] = nn.Parameter(numbers, requires_grad=False)
            layer.__dict__.pop(SCALE, None)
            layer._buffers[SCALE] = scale
        with patched(layers, "forward", lambda layer, _usual: _forward(layer)):
            yield
    finally:
        for layer, home, laid_on in homes:
            layer._parameters["weight"] = home
            if laid_on:
                setattr(layer, "weight_function", laid_on)  # noqa: B010
            layer._buffers.pop(SCALE, None)
        for layer in hidden:
            layer.__dict__[SCALE] = None


def _forward(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    own: Any = layer

    def forward(x: Tensor) -> Tensor:
        bias = own.bias
        if bias is not None:
            # Of what is still elsewhere, or has something laid on it by the host, only ``bias_of`` knows.
            plain = bias.device == x.device and not getattr(own, "bias_function", None)
            bias = bias.to(x.dtype) if plain else bias_of(layer, x)
        return frozen_product(x, own.weight, own.scale_weight, bias)

    setattr(forward, FROZEN, True)
    return forward
