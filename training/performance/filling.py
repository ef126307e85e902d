"""Filling a device: which blocks are computed twice, and whose weights stay away, so that a run just fits and loses least time.

Blocks are computed twice by the bytes that this frees for each operation it costs, as torch's partitioner and Chen et al. (2016,
arXiv 1604.06174) have it; among equals it is the first ones, whose second pass finds what later blocks kept gone already (what
Megatron-LM does with its block-wise recomputation). Everything here is a function of what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from ..config import TrainingConfig
from .activation_offload import can_offload
from .block_offload import TransferPace
from .memory import Activations, Measured, Need
from .thrift import Thrift

ALIKE = 1.05
"""Blocks whose worth differs by less than this factor count for equal."""
AGAIN = 2
"""The backward pass of a frozen block that is computed twice, in times of its forward pass: that pass, and the gradient's."""
TIE = 0.01
"""What an even pressure counts beside waiting."""
BYTES_PER_FLOP = 1 / 4000
"""What a bus brings while a device computes, where nobody has measured: 25 GB/s beside 100 TFLOP/s."""


def order_of(activations: Activations) -> list[int]:
    """Blocks in the order in which computing them twice is worth it, those that would save nothing last."""
    passed = activations.order or range(len(activations.blocks))
    at = {block: place for place, block in enumerate(passed)}

    def worth(i: int) -> tuple[int, int]:
        block = activations.blocks[i]
        saved, cost = block.inside - block.inputs, block.flops or block.inside
        if saved <= 0 or cost <= 0:
            return 2**30, at[i]
        return -round(math.log(saved / cost) / math.log(ALIKE)), at[i]

    return sorted(at, key=worth)


def recomputed(activations: Activations, fits: Callable[[frozenset[int]], bool], asked: frozenset[int]) -> frozenset[int]:
    """As few more blocks than ``asked`` as ``fits`` allows; all of them if none does."""
    chosen = set(asked)
    added: list[int] = []
    for block in order_of(activations):
        if fits(frozenset(chosen)):
            break
        if block not in chosen:
            chosen.add(block)
            added.append(block)
    if not fits(frozenset(chosen)):
        return frozenset(range(len(activations.blocks)))
    # Some that helped a little may have become needless through those after them; the dearest first.
    while True:
        dearest = sorted((i for i in added if i in chosen), key=lambda i: (-activations.blocks[i].flops, i))
        needless = next((i for i in dearest if fits(frozenset(chosen - {i}))), None)
        if needless is None:
            return frozenset(chosen)
        chosen.remove(needless)


def away(
    sizes: Sequence[int], flops: Sequence[int], fits: Callable[[tuple[int, ...]], bool], pace: TransferPace | None = None
) -> tuple[int, ...]:
    """Which blocks stay in main memory: as few as ``fits`` allows, and those whose coming is waited for least.

    ``sizes`` are bytes of weights, ``flops`` those of a forward pass, in the order of the passes; all stay if nothing else fits.
    """
    work = list(flops) if any(flops) else list(sizes)
    rate = BYTES_PER_FLOP if any(flops) else 1.0
    if pace is not None and pace.carried and pace.transfer > 0:
        # What a step computes in the time in which a byte comes, measured.
        rate = pace.carried / pace.transfer * pace.computing / ((1 + AGAIN) * max(1, sum(work)))
    seconds = [rate * amount for amount in work]
    chosen: list[int] = []

    def cost(i: int) -> tuple[float, float, float, int]:
        """For each byte that is freed; two blocks are always there, so the first two free nothing."""
        gone = sorted([*chosen, i])
        waits, pressure = waiting(gone, sizes, seconds)
        freed = sum(sorted(sizes[j] for j in gone)[:-2])
        lost = waits + TIE * pressure
        return (lost / freed, -sizes[i], 0.0, i) if freed else (math.inf, -sizes[i], lost, i)

    while len(chosen) < len(sizes) and not fits(tuple(sorted(chosen))):
        chosen.append(min((i for i in range(len(sizes)) if i not in chosen), key=cost))
    for i in sorted(chosen, key=lambda i: (sizes[i], i)):
        if fits(tuple(sorted(set(chosen) - {i}))):
            chosen.remove(i)
    return tuple(sorted(chosen))


def waiting(gone: Sequence[int], transfer: Sequence[float], computing: Sequence[float]) -> tuple[float, float]:
    """(how long a step waits for the blocks ``gone``, how hard the way to them is pressed), ``transfer`` and ``computing`` being
    each block's times, in one unit.

    A block sets out as the one before it that was away begins, and has until its own turn. The second number is least if all
    have time in proportion; it decides where nothing is waited for.
    """
    waits = pressure = 0.0
    for one, other in pairwise(gone):
        forward = sum(computing[one:other])
        back = AGAIN * sum(computing[one + 1 : other + 1])
        for takes, time in ((transfer[other], forward), (transfer[one], back)):
            waits += max(0.0, takes - time)
            pressure += takes * takes / max(time, 1e-9)
    if len(gone) == 1:
        pressure = transfer[gone[0]] / max(1e-9, sum(computing))
    return waits, pressure


def filled(
    found: Measured,
    config: TrainingConfig,
    pictures: int,
    asked: Thrift,
    device: torch.device,
    fits: Callable[[Need], bool],
    pace: TransferPace | None = None,
) -> Thrift:
    """``asked``, or as little less as fits; the cheapest there is if even that does not."""

    def suits(thrift: Thrift) -> bool:
        return fits(found.need(thrift, config, pictures))

    if suits(asked):
        return asked
    kept = found.activations
    thrift = asked.recomputing(recomputed(kept, lambda more: suits(asked.recomputing(more)), asked.recomputed))
    if suits(thrift) or not can_offload(device) or not thrift.movable:
        return thrift
    sizes = found.weights.blocks
    flops = [kept.blocks[i].flops for i in range(len(sizes))]
    first = set(thrift.away)
    chosen = away(sizes, flops, lambda gone: len(gone) >= len(first) and suits(thrift.keeping_away(gone)), pace)
    return thrift.keeping_away(chosen)


def paced(found: Measured, thrift: Thrift, pace: TransferPace) -> Thrift:
    """``thrift`` with other blocks away, by what their transfers were measured to take; no more memory is needed for it."""
    if not thrift.away or not pace.is_waited_for:
        return thrift
    sizes = found.weights.blocks
    flops = [found.activations.blocks[i].flops for i in range(len(sizes))]
    now = found.weights.needed(thrift)
    other = away(sizes, flops, lambda gone: found.weights.needed(thrift.keeping_away(gone)) <= now, pace)
    return thrift.keeping_away(other) if set(other) <= thrift.recomputed else thrift
