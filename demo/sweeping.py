"""The template "Compare learning rates": one recipe trained with four rates, and one grid over what came of them.

Standard library only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from . import templates
from .templates import DESCRIPTIONS, FOLDER, TRIGGER

TITLE = "Compare learning rates"
DESCRIPTION = next(one for one in DESCRIPTIONS if one.model == "SDXL")
SWEEP = "learning_rate: 5e-5, 1e-4, 2e-4, 4e-4"


def build(info: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The graph as the canvas stores it; see ``templates.build``."""
    changed = {
        **values,
        "ConfigureLoRA": {**values["ConfigureLoRA"], "sweep": SWEEP},
        "EpochWeightGrid": {**values["EpochWeightGrid"], "which_epochs": "last"},
    }
    graph = templates.build(DESCRIPTION, info, changed)
    graph["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, "lora-atelier/sweeping"))
    notes = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    notes[0]["widgets_values"] = [_what()]
    return graph


def _what() -> str:
    rows = [f"| [{file.name}]({file.page}) | `models/{file.folder}` |" for file in DESCRIPTION.files]
    return "\n".join([
        f"## {TITLE}",
        "| what | where in ComfyUI |", "| --- | --- |", f"| about {templates.PICTURES} pictures of one style | `{FOLDER}` |",
        *rows, "",
        "`sweep` of **Configure LoRA** (among the advanced widgets, under *Saving, samples and stopping*) names a widget and the "
        f"values that it shall have: here `{SWEEP}`. **Train LoRA** trains each of them after the other, with a name of its own, "
        "and the grid shows the last LoRA of each side by side, under the value.",
        "",
        f"1. Choose the folder in **Load Dataset**; write a word of your own in place of `{TRIGGER}`.",
        "2. Another sweep: `rank: 8, 16, 32` (with `alpha` at 0, which follows the rank), `optimizer: AdamW, Prodigy`, "
        "`seed: 1-3`. Several lines are combined: each value of one with each of the others.",
        "3. Queue. A training that is finished is not trained again: after a stop, or with a value more, only what is missing. "
        "For a first look set `max_steps` low.",
        "4. `which_epochs` at `all` shows every epoch of every training. Keep what you like with *Look and choose ...*, and "
        "delete the others in *Runs ...*; the grid itself lies with the first of them.",
    ])  # fmt: skip
