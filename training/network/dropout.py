"""Dropout masks as a function of (seed, step): a resumed run, and a forward pass that is recomputed, drop the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..seeding import step_generator
from ..tensors.transfer import to_device
from .adapter_layer import AdapterLayer, DropoutMask

STREAM = 0x64726F70
"""Keeps these draws apart from the noise of the same step."""


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

    def draw(self, branches: Sequence[AdapterLayer], seed: int, step: int, device: torch.device) -> list[DropoutMask]:
        """One mask for each branch. At least one branch is never skipped: a step without any would have no gradient."""
        stream = step_generator(seed, step, STREAM)
        fates = torch.rand(len(branches), generator=stream)
        seeds = torch.randint(2**62, (len(branches),), generator=stream).tolist()
        skipped = fates < self.modules
        skipped[fates.argmax()] = False
        kept: Sequence[torch.Tensor | None] = [None] * len(branches)
        if self.ranks > 0:
            sizes = [branch.rank_count for branch in branches]
            stay = torch.rand(sum(sizes), generator=stream) >= self.ranks
            kept = to_device(stay.float() / (1 - self.ranks), device).split(sizes)
        return [DropoutMask(s, self.elements, k, gone) for s, k, gone in zip(seeds, kept, skipped.tolist(), strict=True)]
