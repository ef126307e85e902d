"""Fallbacks when memory runs out: what a run gives up, one after the other; the LoRA changes by rounding only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..config import TrainingConfig
from .activation_offload import can_offload


def without_effect(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """``config`` less what only moves numbers into main memory, where ``device`` has no other memory."""
    return config if can_offload(device) else replace(config, offload_activations=False, offload_blocks=0.0)


def cheaper(config: TrainingConfig, device: torch.device) -> TrainingConfig | None:
    """The same run in less memory, and slower; None if there is no further step down."""
    if not config.gradient_checkpointing:
        return replace(config, gradient_checkpointing=True)
    if can_offload(device) and config.offload_blocks < 1:
        return replace(config, offload_blocks=0.5 if config.offload_blocks < 0.5 else 1.0, compile=False)
    return None


def steps_down(config: TrainingConfig, device: torch.device) -> Iterator[TrainingConfig]:
    """``config`` and all that is cheaper, in order."""
    step: TrainingConfig | None = config
    while step is not None:
        yield step
        step = cheaper(step, device)


def difference(before: TrainingConfig, after: TrainingConfig) -> str:
    """What changes for the person, such as ``gradient_checkpointing is on``."""
    said = []
    if after.gradient_checkpointing and not before.gradient_checkpointing:
        said.append("gradient_checkpointing is on")
    if after.offload_blocks > before.offload_blocks:
        said.append(f"{after.offload_blocks:.0%} of the model's blocks stay in main memory (offload_blocks)")
    if before.compile and not after.compile:
        said.append("compile is off")
    return ", ".join(said)
