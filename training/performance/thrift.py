"""Thrift: what a run does to need less memory. The recipe stays as the person wrote it; this is what is done for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..config import TrainingConfig
from .activation_offload import can_offload
from .block_offload import scattered


@dataclass(frozen=True)
class Thrift:
    """What is computed twice, what stays in main memory, and whether there is compiled code.

    All that changes numbers by rounding at most.
    """

    blocks: int
    """Of everything that is trained beside: the model's first, then the text encoder's."""
    movable: int
    """So many of them can stay in main memory: the model's."""
    recomputed: frozenset[int] = frozenset()
    """Blocks that keep their inputs only (gradient checkpointing)."""
    away: tuple[int, ...] = ()
    """Blocks whose weights come for their own passes; they are among ``recomputed``, or autograd would hold all that came."""
    activations_away: bool = False
    compiled: bool = False
    """Blocks whose weights come and go cannot be compiled."""
    eight_bits: bool = False
    """Frozen weights are held in eight bits; that does change numbers, so it is always as the recipe has it."""
    shards: int = 1
    """So many processes hold a part each of the model's blocks; more than one goes together with no block that is away."""

    @classmethod
    def asked(cls, config: TrainingConfig, blocks: int, movable: int, device: torch.device) -> Thrift:
        """As the recipe has it, less what only moves numbers into main memory where ``device`` has no other memory."""
        apart = can_offload(device)
        return cls(
            blocks,
            movable,
            frozenset(range(blocks)) if config.gradient_checkpointing else frozenset(),
            tuple(scattered(movable, config.offload_blocks)) if apart else (),
            config.offload_activations and apart,
            config.compile,
            config.base_weights != "as loaded",
        )

    def recomputing(self, more: frozenset[int]) -> Thrift:
        """The same, and ``more`` is computed twice."""
        return replace(self, recomputed=self.recomputed | more)

    def keeping_away(self, away: tuple[int, ...]) -> Thrift:
        """The same, but it is these whose weights come."""
        kept = self.recomputed | frozenset(away)
        return replace(self, recomputed=kept, away=away, compiled=self.compiled and not away)

    def sharing(self, processes: int) -> Thrift:
        """The same, and each of so many processes holds a part of the model's blocks."""
        return replace(self, shards=processes, movable=0, away=(), compiled=False)

    @property
    def recomputes_all(self) -> bool:
        return len(self.recomputed) == self.blocks


def difference(before: Thrift, after: Thrift) -> str:
    """What changes for the person, such as ``gradient_checkpointing is on``."""
    said = []
    if len(after.recomputed) > len(before.recomputed):
        verb = "is" if len(after.recomputed) == 1 else "are"
        part = f"{len(after.recomputed)} of {after.blocks} blocks {verb} computed twice (gradient_checkpointing)"
        said.append("gradient_checkpointing is on" if after.recomputes_all else part)
    if len(after.away) > len(before.away):
        said.append(
            f"{len(after.away)} of {after.movable} blocks of the model "
            f"{'stays' if len(after.away) == 1 else 'stay'} in main memory (offload_blocks)"
        )
    if before.compiled and not after.compiled:
        said.append("compile is off")
    return ", ".join(said)
