"""The picture beside a LoRA file, by which hosts and managers show it: ``ink.png`` beside ``ink.safetensors``.

ComfyUI, Lora-Manager and the older web UI all look for it under that name. One that somebody else has put there stays.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from pathlib import Path
from typing import Any

from ..dataset.png_text import png_text
from ..errors import AtelierError
from ..files import is_file, replacing

KEY, MARK = "Software", "LoRA Atelier"
"""What is written into pictures of ours, to tell them from a person's."""
OTHERS = (".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp", ".jpg", ".jpeg", ".webp")
"""Names that the same programs read besides; where one of them is there, somebody has chosen a picture."""
QUALITIES = (85, 70, 50, 30)
THUMBNAIL_BYTES = 64 * 1024
"""Most of a thumbnail, which is read whenever a list of models is."""


def preview_of(lora: Path) -> Path:
    return lora.with_suffix(".png")


def is_ours(picture: Path) -> bool:
    """Whether a run has put this picture there."""
    try:
        return is_file(picture) and png_text(picture, KEY) == MARK
    except (AtelierError, OSError):
        return False


def place(sample: Path, lora: Path) -> bool:
    """Copies a sample to where the picture of ``lora`` belongs; False where another's is there."""
    target = preview_of(lora)
    if (os.path.lexists(target) and not is_ours(target)) or any(os.path.lexists(lora.with_suffix(end)) for end in OTHERS):
        return False
    with replacing(target, durable=False) as temporary:
        shutil.copyfile(sample, temporary)
    return True


def thumbnail(picture: Any, side: int) -> str:
    """A PIL picture as the JPEG of a data URL, at most ``side`` pixels a side and ``THUMBNAIL_BYTES`` large."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    data = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
        if len(data) <= THUMBNAIL_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
