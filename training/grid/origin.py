"""Where a grid's models come from: the model's name, from the graph, and how the LoRAs' captions were read, from their files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PureWindowsPath
from typing import Any

from ..config import Syntax
from ..runs.metadata import PAIRS as PAIRS

NAMES = ("ckpt_name", "unet_name", "model_name", "base_ckpt_name", "model_path")
"""Widgets by which loaders name their file."""


def model_name(prompt: Mapping[str, Any] | None, node_id: str | None) -> str:
    """The file that the node's ``model`` was loaded from, without folder and ending; empty when the graph does not tell.

    ``prompt`` is the API prompt. Followed upwards is each node's link called ``model``, else its first link called like a model.
    """
    key = str(node_id)
    for _ in range(len(prompt or ())):
        inputs = (prompt or {}).get(key, {}).get("inputs", {})
        for name in NAMES:
            if isinstance(inputs.get(name), str):
                return PureWindowsPath(inputs[name]).stem  # understands both kinds of slashes
        links = [(name, value) for name, value in inputs.items() if isinstance(value, list) and len(value) == 2]
        up = next((value for name, value in sorted(links, key=lambda link: link[0] != "model") if "model" in name), None)
        if up is None:
            return ""
        key = str(up[0])
    return ""


def prompt_syntax(files: Iterable[Mapping[str, str]]) -> Syntax:
    """How prompts are read for LoRA files with this metadata: as their captions were.

    A recipe of this pack that doesn't say was trained when all was read in ComfyUI's syntax; other trainers' captions are plain
    text. Where files disagree, or say nothing, it is plain.
    """
    found: set[Syntax] = {_syntax(facts.get("lora_atelier.config")) for facts in files}
    return "ComfyUI" if found == {"ComfyUI"} else "plain"


def _syntax(recipe: str | None) -> Syntax:
    if recipe is None:
        return "plain"
    try:
        text = json.loads(recipe)["text"]
        return "plain" if text.get("syntax", "ComfyUI") == "plain" else "ComfyUI"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "plain"
