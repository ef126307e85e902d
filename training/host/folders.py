"""Folders of the host, and its files by the names that its loaders list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import folder_paths

from ..errors import AtelierError

MODEL_WIDGETS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models"}
"""The stock loaders' widgets, and the folders that they list."""
TEXT_WIDGETS = {
    "ckpt_name": "checkpoints", "clip_name": "text_encoders",
    **{f"clip_name{number}": "text_encoders" for number in range(1, 5)},
}  # fmt: skip
"""The same of those that load a text encoder."""


def dataset_roots() -> dict[str, Path]:
    """The folders that datasets may come from, by the name shown in front of the path."""
    roots = {"input": Path(folder_paths.get_input_directory())}
    known = folder_paths.folder_names_and_paths.get("datasets")
    for i, folder in enumerate(known[0] if known else [Path(folder_paths.base_path) / "datasets"]):
        roots["datasets" if i == 0 else f"datasets{i + 1}"] = Path(folder)
    return roots


def dataset_root(name: str) -> Path:
    """The folder that stands first in the name of a dataset's folder."""
    return dataset_roots()[name.split("/")[0]]


def captioner_folder() -> Path:
    return Path(folder_paths.models_dir) / "captioners"


def temp_folder() -> Path:
    return _made(Path(folder_paths.get_temp_directory()))


def output_folder() -> Path:
    return _made(Path(folder_paths.get_output_directory()))


def cache_folder() -> Path:
    return _made(Path(folder_paths.get_user_directory()) / "lora-atelier" / "cache")


def runs_folder() -> Path:
    """Where runs keep their state, history and sample pictures."""
    return _made(Path(folder_paths.get_output_directory()) / "lora-atelier")


def all_loras_folder() -> Path:
    """The host's first ``loras`` folder."""
    return _made(Path(folder_paths.get_folder_paths("loras")[0]))


def loras_folder() -> Path:
    """Where finished LoRA files go: a subfolder of the first ``loras`` folder, so that every stock loader lists them."""
    return _made(all_loras_folder() / "lora-atelier")


def lora_name(path: Path) -> str:
    """How the stock loaders list this file; its plain name when it lies elsewhere."""
    for root in folder_paths.get_folder_paths("loras"):
        try:
            return str(path.resolve().relative_to(Path(root).resolve()))
        except ValueError:
            continue
    return path.name


def lora_path(name: str) -> Path:
    """The file that the stock loaders list under this name."""
    found = folder_paths.get_full_path("loras", name)
    if found is None:
        raise AtelierError(f"start from: there is no LoRA called {name}; refresh the page and choose one that is listed.")
    return Path(found)


def lora_files() -> list[str]:
    """The LoRA files as the stock loaders list them, safetensors only."""
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith(".safetensors")]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def model_file(widget: str, name: str, widgets: Mapping[str, str] = MODEL_WIDGETS) -> Path:
    """The file that a loader lists under ``name``; AtelierError for anything that is not in its list."""
    folder = widgets.get(widget)
    if folder is None or name not in folder_paths.get_filename_list(folder):
        raise AtelierError(f"{widget}: {name!r} is not in the list of this loader; refresh the page and choose one that is.")
    return Path(folder_paths.get_full_path_or_raise(folder, name))
