"""Model name from the graph, for the title."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

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
