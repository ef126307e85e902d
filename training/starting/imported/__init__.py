"""Reads configurations of other trainers, the metadata of LoRA files and presets of one's own into widgets' values."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import AtelierError
from ...files import parse_json
from . import ai_toolkit, kohya, one_trainer
from .collector import Imported, Lost

__all__ = ["OWN", "Imported", "Lost", "read"]

MOST = 1 << 20
"""Characters of a file."""
MOST_YAML = 200_000
"""Characters of a YAML file, which is read slowly."""
DEEPEST = 50
"""Levels of a file's values; configurations have six."""
OWN = "lora_atelier_preset"
"""The mark of a preset that was saved here; its value is the format's number."""
KNOWN = "kohya's sd-scripts or its interface, ai-toolkit, OneTrainer, a LoRA's metadata or a preset of LoRA Atelier"


def read(text: str, name: str = "") -> Imported:
    """What a file says; AtelierError for one that is none of those known. ``name`` is the file's, for messages."""
    shown = name or "The file"
    if len(text) > MOST:
        raise AtelierError(f"{shown}: it has more than {MOST} characters; a configuration is far shorter.")
    settings = _parsed(text, shown)
    if _is_deep(settings):
        raise AtelierError(f"{shown}: its values lie more than {DEEPEST} levels deep; this is no configuration of {KNOWN}.")
    if not isinstance(settings, dict):
        raise AtelierError(f"{shown}: this is no configuration of {KNOWN}.")
    if OWN in settings:
        return _own(settings, shown)
    if isinstance(settings.get("__metadata__"), dict):
        settings = settings["__metadata__"]
    if any(str(key).startswith("ss_") for key in settings):
        found = kohya.read(kohya.metadata(settings), "a LoRA's metadata", trained=True)
        return replace(found, recipe=_recipe(settings.get("lora_atelier.config")))
    if ai_toolkit.process_of(settings) is not None:
        return ai_toolkit.read(settings)
    if one_trainer.is_one_trainer(settings):
        return one_trainer.read(settings)
    if kohya.is_kohya(settings):
        return kohya.read(settings)
    raise AtelierError(f"{shown}: this is no configuration of {KNOWN}.")


def _parsed(text: str, shown: str) -> Any:
    """The file as JSON, TOML or YAML, whichever it is."""
    plain = text.lstrip("\ufeff")
    if plain.lstrip()[:1] in ("{", "["):
        try:
            return parse_json(plain.encode())
        except ValueError as error:
            if not plain.lstrip().startswith("["):  # a table in TOML begins so as well
                raise AtelierError(f"{shown}: it is damaged ({error}).") from error
    try:
        return _toml(plain)
    except ValueError:
        pass
    try:
        return _yaml(plain)
    except ValueError as error:
        raise AtelierError(f"{shown}: it is neither JSON, TOML nor YAML ({error}).") from error


def _is_deep(values: Any) -> bool:
    """Whether values lie deeper in one another than what reads them could follow."""
    waiting = [(values, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > DEEPEST:
            return True
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        waiting.extend((one, depth + 1) for one in inner)
    return False


def _toml(text: str) -> Any:
    try:
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError as error:
        raise AtelierError("TOML files need Python 3.11, or the Python package tomli: pip install tomli") from error
    try:
        return toml.loads(text)
    except RecursionError as error:
        raise ValueError("it lies too deep in itself") from error


def _yaml(text: str) -> Any:
    """Plain values only: an alias could stand for more than any memory holds."""
    if len(text) > MOST_YAML:
        raise ValueError(f"YAML of more than {MOST_YAML} characters is not read")
    yaml: Any = importlib.import_module("yaml")
    opening = (
        yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken, yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken,
    )  # fmt: skip
    closing = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
    depth = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise ValueError("it refers to its own parts")
            depth += isinstance(token, opening) - isinstance(token, closing)
            if depth > DEEPEST:  # found before it is read, which takes ever longer the deeper it is
                raise ValueError("it lies too deep in itself")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _recipe(text: Any) -> Mapping[str, Any]:
    """The recipe that this pack writes into its files; empty where there is none that can be read."""
    try:
        recipe = parse_json(text.encode()) if isinstance(text, str) else None
    except ValueError:
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _own(settings: Mapping[str, Any], shown: str) -> Imported:
    """A preset that was saved here; the nodes check its values."""
    nodes = settings.get("nodes")
    if settings.get(OWN) != 1 or not isinstance(nodes, dict) or not all(isinstance(widgets, dict) for widgets in nodes.values()):
        raise AtelierError(f"{shown}: it was saved by another version of LoRA Atelier, or is damaged.")
    named = settings.get("name")
    origin = f"the preset {named}" if isinstance(named, str) and named else "LoRA Atelier"
    return Imported(origin, {str(kind): dict(widgets) for kind, widgets in nodes.items()}, (), own=True)
