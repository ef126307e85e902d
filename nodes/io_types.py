"""The types on this pack's wires. Their values are immutable: what a node gave once is never changed by another."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

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


def folded(inputs: list[Any], names: Collection[str], groups: Mapping[str, str] | None = None) -> list[Any]:
    """The inputs, those with these names marked as advanced: the canvas shows them when asked to. Their order stays.

    ``groups``: the heading under which the canvas puts an input, by its name. Set on the finished input, since the older hosts'
    inputs take no argument for it; all of them send what is in ``extra_dict``.
    """
    for entry in inputs:
        if entry.id in names:
            heading = {"atelier_group": groups[entry.id]} if groups and entry.id in groups else {}
            entry.extra_dict = {**entry.extra_dict, "advanced": True, **heading}
    return inputs


def searched(*words: str) -> dict[str, list[str]]:
    """The words under which the canvas' search finds a node besides its name, as a part of its schema; nothing on older hosts."""
    known = {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(words)} if "search_aliases" in known else {}
