"""Fallbacks when memory runs out: what a run gives up, one after the other; the LoRA changes by rounding only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .activation_offload import can_offload
from .block_offload import scattered
from .thrift import Thrift


def cheaper(thrift: Thrift, device: torch.device, order: Sequence[int] | None = None) -> Thrift | None:
    """The same run in less memory, and slower; None if there is no further step down.

    First a half of the blocks is computed twice, in the ``order`` that costs least (or from the first on), then all, then a half
    of the model's blocks stays away, then all.
    """
    half = -(-thrift.blocks // 2)
    if len(thrift.recomputed) < half:
        others = [i for i in (range(thrift.blocks) if order is None else order) if i not in thrift.recomputed]
        return thrift.recomputing(frozenset(others[: half - len(thrift.recomputed)]))
    if not thrift.recomputes_all:
        return thrift.recomputing(frozenset(range(thrift.blocks)))
    if can_offload(device) and len(thrift.away) < thrift.movable:
        share = 0.5 if len(thrift.away) < thrift.movable / 2 else 1.0
        return thrift.keeping_away(tuple(scattered(thrift.movable, share)))
    return None


def steps_down(thrift: Thrift, device: torch.device, order: Sequence[int] | None = None) -> Iterator[Thrift]:
    """``thrift`` and all that is cheaper, in order."""
    step: Thrift | None = thrift
    while step is not None:
        yield step
        step = cheaper(step, device, order)
