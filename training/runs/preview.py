"""The picture beside a LoRA file, by which hosts and managers show it: ``ink.png`` beside ``ink.safetensors``.

ComfyUI, Lora-Manager and the older web UI all look for it under that name. One that somebody else has put there stays, also where
it is a copy of a sample: the run's own is known by the digest that its record holds.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

from ..errors import AtelierError
from ..files import open_plain, replacing

KEY, MARK = "Software", "LoRA Atelier"
"""What samples say of the program that drew them."""
OTHERS = (".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp", ".jpg", ".jpeg", ".webp")
"""Names that the same programs read besides; where one of them is there, somebody has chosen a picture."""
JPEG = "data:image/jpeg;base64,"
QUALITIES = (85, 70, 50, 30)
THUMBNAIL_BYTES = 64 * 1024
"""Most of a thumbnail, which is read whenever a list of models is."""


def preview_of(lora: Path) -> Path:
    return lora.with_suffix(".png")


def digest(picture: Path) -> str:
    """SHA-256 (hex) of a plain file; empty where there is none."""
    try:
        with open_plain(picture) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except (AtelierError, OSError):
        return ""


def is_ours(picture: Path, placed: str) -> bool:
    """Whether this is still the picture that a run has put there, whose digest was ``placed``; empty: it has put none there."""
    return bool(placed) and not picture.is_symlink() and digest(picture) == placed


def place(sample: Path, lora: Path, placed: str = "") -> str:
    """Copies a sample to where the picture of ``lora`` belongs, and tells its digest; empty where another's is there.

    ``placed``: the digest of the one that was put there before.
    """
    target = preview_of(lora)
    others = any(os.path.lexists(lora.with_suffix(end)) for end in OTHERS)
    if others or (os.path.lexists(target) and not is_ours(target, placed)):
        return ""
    with replacing(target, durable=False) as temporary:
        shutil.copyfile(sample, temporary)
        found = digest(temporary)
    return found


def thumbnail(picture: Any, side: int) -> str:
    """A PIL picture as the JPEG of a data URL: at most ``side`` pixels a side, and less of both where it would have more than
    ``THUMBNAIL_BYTES`` characters."""
    small = picture.convert("RGB")
    while True:
        small.thumbnail((side, side))
        for quality in QUALITIES:
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=quality, optimize=True)
            url = f"{JPEG}{base64.b64encode(buffer.getvalue()).decode('ascii')}"
            if len(url) <= THUMBNAIL_BYTES:
                return url
        side = max(small.size) * 3 // 4
