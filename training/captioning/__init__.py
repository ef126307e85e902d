"""Captioners: which ones there are, and loading one. Importing this imports no model code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AtelierError
from ..files import Unreadable, is_file
from .config_file import config_of
from .protocol import Check, go_on
from .settings import GenerationSettings as GenerationSettings
from .settings import TaggerSettings as TaggerSettings

if TYPE_CHECKING:
    import torch

    from .connected import Writer
    from .protocol import Captioner

FILE_NAME = "file name"
EXISTING = "existing captions"
CONNECTED = "connected clip"
WITHOUT_FOLDER = (FILE_NAME, EXISTING, CONNECTED)
"""Captioners that need no model's folder."""
BY_DEFAULT = TaggerSettings()


def list_captioners(folder: Path) -> list[str]:
    """Names of the captioners: those without a folder, then the sub-folders of ``folder`` that hold a model."""
    try:
        models = sorted((entry.name for entry in folder.iterdir() if _is_model(entry)), key=str.casefold)
    except OSError:
        models = []
    return [*WITHOUT_FOLDER, *models]


def _is_model(folder: Path) -> bool:
    """Hidden folders are downloads under way."""
    if folder.name.startswith(".") or not os.path.isdir(folder):
        return False
    return is_file(folder / "config.json") or is_tagger(folder)


def is_tagger(folder: Path) -> bool:
    return any(folder.glob("*.onnx"))


def model_type(folder: Path) -> str:
    """What the folder's ``config.json`` says the model is; AtelierError naming the file if it cannot be read."""
    path = folder / "config.json"
    try:
        kind = config_of(folder)["model_type"]
        if not isinstance(kind, str):
            raise KeyError("model_type")
        return kind
    except FileNotFoundError as error:
        raise AtelierError(
            f"captioner: there is no {path}. Put a model's folder into {folder.parent}, or choose another."
        ) from error
    except KeyError as error:
        raise AtelierError(
            f"captioner: {path} names no model_type. Only models for transformers can be used, and taggers."
        ) from error
    except Unreadable as error:
        raise AtelierError(f"captioner: {path} cannot be read ({error.why}). Download the model's files again.") from error


def weight_bytes(folder: Path) -> int:
    """The size of the weights on the disk."""
    return sum(path.stat().st_size for kind in ("*.safetensors", "*.onnx") for path in folder.glob(kind))


def load(
    name: str,
    folder: Path,
    pattern: str,
    settings: GenerationSettings,
    device: torch.device,
    tagger: TaggerSettings = BY_DEFAULT,
    writer: Writer | None = None,
    check: Check = go_on,
) -> Captioner:
    """The captioner ``name``: "file name" with ``pattern``, "existing captions", "connected clip" with ``writer``, or the
    model in ``folder / name`` with ``settings`` (a tagger with ``tagger``). ``check`` is called after every token of a model.

    Raises AtelierError naming the widget or the folder: an unknown name, a kind of model that is not supported, weights that are
    not safetensors, a damaged file.
    """
    if name == FILE_NAME:
        from .file_name import FileNameCaptioner

        return FileNameCaptioner(pattern)
    if name == EXISTING:
        from .existing import ExistingCaptioner

        return ExistingCaptioner()
    if name == CONNECTED:
        from .connected import ConnectedCaptioner

        if writer is None:
            raise AtelierError(
                f"captioner: {CONNECTED!r} needs a language model at the input clip. Connect one, or choose another."
            )
        return ConnectedCaptioner(writer, settings)
    if name not in list_captioners(folder):
        raise AtelierError(f"captioner: {name!r} is not in {folder}. Put the model's folder there, or choose another captioner.")
    if is_tagger(folder / name):
        from .tagger import Tagger

        return Tagger(folder / name, tagger, device)
    return _language_model(folder / name, settings, device, check)


def _language_model(path: Path, settings: GenerationSettings, device: torch.device, check: Check) -> Captioner:
    """By its kind; one that no other captioner knows is a chat model."""
    from . import blip, chat, florence, plain
    from .pretrained import refuse_unreadable

    kind = model_type(path)
    refuse_unreadable(path, kind)
    if kind in florence.MODEL_TYPES:
        return florence.FlorenceCaptioner(path, settings, device, check)
    if kind in blip.MODEL_TYPES:
        return blip.BlipCaptioner(path, kind, settings, device, check)
    if kind in plain.MODEL_TYPES:
        return plain.PlainCaptioner(path, kind, settings, device, check)
    return chat.ChatCaptioner(path, kind, settings, device, check)
