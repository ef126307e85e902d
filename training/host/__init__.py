"""Adapter to ComfyUI: everything this project knows about its insides. Nothing outside this folder imports the host.

Thin objects wrap what a graph has loaded: ``Model`` (a MODEL), ``TextEncoder`` (a CLIP) and ``PictureCodec`` (a VAE). Beside them
are small functions for folders, progress and files. Features are detected, versions never compared.
"""

from .answering import TRUSTED
from .detect import Outline, family_of, outline, outline_of, text_outline
from .devices import device_name, free_bytes, free_memory, make_room, memory, torch_device
from .folders import (
    TEXT_WIDGETS,
    all_loras_folder,
    cache_folder,
    captioner_folder,
    dataset_root,
    dataset_roots,
    lora_files,
    lora_name,
    lora_path,
    loras_folder,
    model_file,
    output_folder,
    runs_folder,
    temp_folder,
)
from .model import Model
from .pictures import PictureCodec, PictureReader
from .server import (
    add_routes,
    check_interrupt,
    is_interrupt,
    progress,
    refusal,
    samplers,
    schedulers,
    send,
    shown_picture,
    status_of,
    upload_limit,
)
from .text import Conditioning, TextEncoder, TextWriter
from .weights import patched
from .wired import NOTHING_WIRED, Wired

__all__ = [
    "NOTHING_WIRED",
    "TEXT_WIDGETS",
    "TRUSTED",
    "Conditioning",
    "Model",
    "Outline",
    "PictureCodec",
    "PictureReader",
    "TextEncoder",
    "TextWriter",
    "Wired",
    "add_routes",
    "all_loras_folder",
    "cache_folder",
    "captioner_folder",
    "check_interrupt",
    "dataset_root",
    "dataset_roots",
    "device_name",
    "family_of",
    "free_bytes",
    "free_memory",
    "is_interrupt",
    "lora_files",
    "lora_name",
    "lora_path",
    "loras_folder",
    "make_room",
    "memory",
    "model_file",
    "outline",
    "outline_of",
    "output_folder",
    "patched",
    "progress",
    "refusal",
    "runs_folder",
    "samplers",
    "schedulers",
    "send",
    "shown_picture",
    "status_of",
    "temp_folder",
    "text_outline",
    "torch_device",
    "upload_limit",
]
