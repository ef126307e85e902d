"""The types on this pack's wires. Their values are immutable: what a node gave once is never changed by another."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "LoRA Atelier"

DATASET = io.Custom("ATELIER_DATASET")
"""``training.dataset.samples.Dataset``: pictures, captions and how they are used."""
CONFIG = io.Custom("ATELIER_CONFIG")
"""``training.config.TrainingConfig``: one whole recipe."""
EPOCHS = io.Custom("ATELIER_EPOCHS")
"""``training.grid.plan.Epochs``: the saved LoRA files of a run."""

LORA_MODEL = io.LoraModel
"""The stock type: a dictionary of tensors."""
LOSS_MAP = io.LossMap
"""The stock type: ``{"loss": [...]}``."""
