"""Captions that were there before: whatever Auto Caption overwrites is kept beside it."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..errors import AtelierError
from ..files import shortened

FOLDER = ".earlier-captions"
"""A hidden folder beside the captions, which no dataset reads."""


def keep(file: Path, data: bytes) -> None:
    """Keeps a caption file of these bytes under a name of its own, before another takes its place; blank ones need no keeping.

    AtelierError naming the file if that fails; then it must not be overwritten.
    """
    if not data.strip():
        return
    copy = file.parent / FOLDER / f"{shortened(file.stem, 200)}.{hashlib.sha256(data).hexdigest()[:8]}{file.suffix}.bak"
    if copy.exists():
        return
    try:
        copy.parent.mkdir(exist_ok=True)
        # The file gets a second name, at no cost; writing the new caption gives the first name to another file.
        # A link's second name would be a link as well, which leads elsewhere from its new place.
        if not file.is_symlink():
            with suppress(OSError):
                os.link(file, copy)
        if not copy.exists():
            shutil.copy2(file, copy)
    except OSError as error:
        raise AtelierError(
            f"{file}: it was not overwritten, because the caption that is there cannot be kept in {FOLDER} ({error.strerror}). "
            "Allow writing in this folder, or copy the pictures."
        ) from error
