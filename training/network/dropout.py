"""Dropout as a function of (seed, step): a resumed run, and a forward pass that is recomputed, drop the same.

What is dropped enters a step as tensors, and elementwise masks are computed from them and the elements' places by arithmetic on
whole numbers. So they are equal on every device, a generator has no part in a forward pass, and a recorded step can be replayed
with other drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..seeding import step_generator
from ..tensors.transfer import to_device
from .adapter_layer import DropoutMask

STREAM = 0x64726F70
"""Keeps these draws apart from the noise of the same step."""
WORD = 2**32
FIRST, SECOND, THIRD = 0x21F0AAAD, 0x735A2D97, 0x31848BAB
"""Multipliers of a 32-bit mixing (C. Wellons, hash-prospector); below 2^31, so that no product leaves 64 bits. After two rounds,
elements 4096 places apart still had to do with each other."""


@dataclass(frozen=True)
class Drops:
    """What all branches do without in one step; tensors are on the adapter's device."""

    seeds: Tensor
    """(branches, 2) whole numbers below 2^32."""
    elements: tuple[float, ...]
    """Of each branch, as in ``DropoutMask``."""
    kept: Tensor | None
    """Of all branches in a row, as in ``DropoutMask``."""
    stays: Tensor | None
    """(branches,)"""

    def masks(self, sizes: Sequence[int]) -> list[DropoutMask | None]:
        """One for each branch, None for one that does without nothing in any step; ``sizes`` are their rank counts."""
        none = [None] * len(sizes)
        kept = none if self.kept is None else self.kept.split(list(sizes))
        stays = none if self.stays is None else self.stays.unbind()
        rows = zip(self.seeds.unbind(), self.elements, kept, stays, strict=True)
        idle = self.kept is None and self.stays is None
        return [None if idle and not share else DropoutMask(s, share, k, f) for s, share, k, f in rows]


@dataclass(frozen=True)
class Dropout:
    """Three kinds, each a share between 0 and 1."""

    elements: float = 0.0
    """Of the values between A and B, at every position and picture anew."""
    ranks: float = 0.0
    """Of the ranks of a layer (LoHa, LoKr: of the rows of D), the same for the whole batch."""
    modules: float = 0.0
    """Of the layers' whole branches. Those that stay are not scaled up, as in the other trainers."""

    def __bool__(self) -> bool:
        return self.elements > 0 or self.ranks > 0 or self.modules > 0

    def draw(
        self, sizes: Sequence[int], seed: int, step: int, device: torch.device, elements: Sequence[float] | None = None
    ) -> Drops:
        """What branches of these rank counts do without; ``elements``: the share of each, where they have shares of their own.
        At least one is never skipped: a step without any has no gradient."""
        stream = step_generator(seed, step, STREAM)
        fates = torch.rand(len(sizes), generator=stream)
        seeds = torch.randint(2**62, (len(sizes),), generator=stream)
        skipped = fates < self.modules
        skipped[fates.argmax()] = False
        stays = (~skipped).float()
        factors = torch.ones(sum(sizes))
        if self.ranks > 0:
            factors = (torch.rand(len(factors), generator=stream) >= self.ranks).float() / (1 - self.ranks)
        factors = factors * stays.repeat_interleave(torch.tensor(sizes))
        kept, stays = to_device(torch.cat([factors, stays]), device).split([len(factors), len(stays)])  # one transfer for both
        named = kept if self.ranks > 0 or self.modules > 0 else None
        seeds = torch.stack([seeds % WORD, seeds // WORD], dim=1)
        shares = tuple(elements) if elements is not None else (self.elements,) * len(sizes)
        return Drops(to_device(seeds, device), shares, named, stays if self.modules > 0 else None)


def kept_elements(seed: Tensor, share: float, like: Tensor) -> Tensor:
    """A factor for every element of ``like``: 0 with probability ``share``, else 1 / (1 - share).

    A function of ``seed`` (2,) and the element's place in its row-major order, equal on all devices.
    """
    first, second = seed.to(like.device).unbind()
    h = torch.arange(like.numel(), device=like.device) ^ first
    h = ((h ^ (h >> 16)) * FIRST) & (WORD - 1) ^ second
    h = ((h ^ (h >> 15)) * SECOND) & (WORD - 1)
    h = ((h ^ (h >> 15)) * THIRD) & (WORD - 1)
    h = h ^ (h >> 15)
    return (h >= round(share * WORD)).view(like.shape).to(like.dtype).div_(1 - share)
