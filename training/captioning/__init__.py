"""Describing pictures: the captioners that are there, and loading one. Importing this imports no model code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AtelierError
from .settings import GenerationSettings as GenerationSettings

if TYPE_CHECKING:
    import torch

    from .protocol import Captioner

FILE_NAME = "file name"
"""The captioner that needs no model."""


def list_captioners(folder: Path) -> list[str]:
    """Names of the captioners: "file name", then the sub-folders of ``folder`` that hold a model's ``config.json``."""
    try:
        models = sorted((entry.name for entry in folder.iterdir() if (entry / "config.json").is_file()), key=str.casefold)
    except OSError:
        models = []
    return [FILE_NAME, *models]


def model_type(folder: Path) -> str:
    """What the folder's ``config.json`` says the model is; AtelierError naming the file if it cannot be read."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except FileNotFoundError as error:
        raise AtelierError(
            f"captioner: there is no {path}. Put a model's folder into {folder.parent}, or choose another."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AtelierError(f"captioner: {path} cannot be read. Download the model's files again.") from error


def load(name: str, folder: Path, pattern: str, settings: GenerationSettings, device: torch.device) -> Captioner:
    """The captioner ``name``: "file name" with ``pattern``, or the model in ``folder / name`` with ``settings``.

    Raises AtelierError naming the widget or the folder: an unknown name, a kind of model that is not supported, weights that are
    not safetensors, a damaged file.
    """
    if name == FILE_NAME:
        from .file_name import FileNameCaptioner

        return FileNameCaptioner(pattern)
    if name not in list_captioners(folder):
        raise AtelierError(f"captioner: {name!r} is not in {folder}. Put the model's folder there, or choose another captioner.")
    from . import blip

    path = folder / name
    kind = model_type(path)
    if kind not in blip.MODEL_TYPES:
        raise AtelierError(f"captioner: {name} is a {kind!r} model; supported are {' and '.join(blip.MODEL_TYPES)}.")
    if not any(path.glob("*.safetensors")):
        raise AtelierError(
            f"captioner: {name} has no safetensors weights. Files like pytorch_model.bin can run code when they are loaded and "
            f"are never read here; put the model's .safetensors file into {path}."
        )
    return blip.BlipCaptioner(path, settings, device)
