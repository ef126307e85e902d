"""Where a grid's models come from: the model's name, from the graph, and how the LoRAs' captions were read, from their files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PureWindowsPath
from typing import Any

from ..config import Syntax
from ..runs.metadata import PAIRS as PAIRS

NAMES = ("ckpt_name", "unet_name", "model_name", "base_ckpt_name", "model_path")
"""Widgets by which loaders name their file."""
NONE = ("", "None")
"""What a list of LoRAs has for none."""


def model_name(prompt: Mapping[str, Any] | None, node_id: str | None, wire: str = "model") -> str:
    """The file that the model on the node's ``wire`` was loaded from, without folder and ending; empty when the graph does not
    tell. ``prompt`` is the API prompt."""
    for inputs in _upwards(prompt, node_id, wire):
        for name in NAMES:
            if isinstance(inputs.get(name), str):
                return _stem(inputs[name])
    return ""


def lora_names(prompt: Mapping[str, Any] | None, node_id: str | None, wire: str = "model") -> tuple[str, ...]:
    """Those that lie on the model on the node's ``wire``, without folder and ending, the last that was laid on it first."""
    found: list[str] = []
    for inputs in _upwards(prompt, node_id, wire):
        own = inputs.get("lora_name")
        if isinstance(own, str) and own not in NONE and inputs.get("strength_model", 1.0) != 0:
            found.append(_stem(own))
        # Some packs' loaders hold several, each with a switch.
        several = [value for value in inputs.values() if isinstance(value, Mapping) and isinstance(value.get("lora"), str)]
        found += [_stem(one["lora"]) for one in several if one.get("on", True) and one["lora"] not in NONE]
        if any(isinstance(inputs.get(name), str) for name in NAMES):  # a loader, which may have LoRAs of its own
            break
    return tuple(found)


def _upwards(prompt: Mapping[str, Any] | None, node_id: str | None, wire: str) -> Iterator[Mapping[str, Any]]:
    """What the nodes in front of a wire are given, nearest first. Followed is each node's link called ``model``, else its first
    link called like a model."""
    nodes, key = prompt or {}, str(node_id)
    for _ in range(len(nodes)):
        inputs = nodes.get(key, {}).get("inputs", {})
        if key != str(node_id):
            yield inputs
        links = {name: value for name, value in inputs.items() if isinstance(value, list) and len(value) == 2}
        if key == str(node_id):
            up = links.get(wire)
        else:
            up = next((links[name] for name in sorted(links, key=lambda name: name != "model") if "model" in name), None)
        if up is None:
            return
        key = str(up[0])


def _stem(file: str) -> str:
    return PureWindowsPath(file).stem  # understands both kinds of slashes


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
