"""The ``config.json`` of a model's folder, which was downloaded from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import Unreadable, read_json

LARGEST = 16 * 2**20
"""Bytes."""


def config_of(folder: Path) -> dict[str, Any]:
    """What it says; Unreadable if it is damaged, FileNotFoundError without one."""
    path = folder / "config.json"
    values = read_json(path, LARGEST, finite=False)
    if not isinstance(values, dict):
        raise Unreadable(path, "this is no object")
    return values
