"""Fetching a model from the Hugging Face hub, when and only when the person has chosen that."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ..errors import AtelierError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.onnx", "*.csv")
"""What a captioner may need. No pickles and no program code."""


def folder_name(hub_id: str) -> str:
    """The folder of a hub id: "Salesforce/blip" -> "Salesforce--blip"; AtelierError naming the widget if it is none."""
    if not HUB_ID.fullmatch(hub_id.strip()) or ".." in hub_id:
        raise AtelierError(f"hub_id: {hub_id!r} is no model's name; write it as on its page, such as owner/model.")
    return hub_id.strip().replace("/", "--")


def download(hub_id: str, folder: Path) -> str:
    """The name of the model's folder in ``folder``, fetched if it is not there yet; AtelierError in one sentence if it fails.

    A download that broke off goes on where it stopped; the folder appears under its name when it is complete.
    """
    name = folder_name(hub_id)
    target, partial = folder / name, folder / f".{name}.partial"
    if target.is_dir():
        return name
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise AtelierError(
            "download: the Python package huggingface_hub is not installed. Install it into ComfyUI's Python, or put the model's "
            f"folder into {folder} yourself."
        ) from error
    try:
        partial.mkdir(parents=True, exist_ok=True)
        snapshot_download(hub_id.strip(), local_dir=partial, allow_patterns=list(FILES))
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        partial.rename(target)
    except Exception as error:
        # The package and the libraries below it raise errors of many kinds for one cause: the files could not be fetched.
        raise AtelierError(
            f"download: {hub_id.strip()} could not be fetched from the hub ({type(error).__name__}). Check the name and the "
            f"network, or put the model's folder into {folder} yourself and switch download off."
        ) from error
    return name
