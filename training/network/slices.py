"""Slices of fused layers: LoRAs of other tools for a part of one of our layers.

diffusers keeps query, key and value (in Flux' single blocks also the first matrix of the feed-forward) as layers of their own
where ComfyUI has one fused layer. A LoRA file in its names, as ai-toolkit, SimpleTuner and OneTrainer write them too, has a pair
of factors for each; side by side they are one pair for the fused layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LayerSlice(str):
    """A name in a LoRA file for some of a layer's outputs: ``rows`` of them from ``start`` on."""

    start: int
    rows: int

    def __new__(cls, name: str, start: int, rows: int) -> LayerSlice:
        piece = super().__new__(cls, name)
        piece.start, piece.rows = start, rows
        return piece


class Pair(NamedTuple):
    """Factors of a piece, with any scale folded in: (rank, in) and (rows, rank)."""

    down: Tensor
    up: Tensor
    start: int


def join(pairs: Sequence[Pair], outputs: int) -> tuple[Tensor, Tensor]:
    """(down, up) of the layer with so many ``outputs``; the rank is that of a pair where all share their ``down``, else the sum.

    Raises RuntimeError if the sizes do not fit.
    """
    ups = []
    for pair in pairs:
        whole = pair.up.new_zeros(outputs, pair.up.shape[1])
        whole[pair.start : pair.start + len(pair.up)] = pair.up
        ups.append(whole)
    first = pairs[0].down
    if all(pair.down.shape == first.shape and torch.equal(pair.down, first) for pair in pairs):
        return first, torch.stack(ups).sum(0)
    return torch.cat([pair.down for pair in pairs]), torch.cat(ups, 1)
