"""Texts in PNG files: what this pack, or any other program, has written into a picture beside its pixels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..files import Unreadable, open_plain


def png_text(path: Path, name: str) -> str | None:
    """The text called ``name``, None without one; Unreadable for what is no sound PNG, FileNotFoundError for no file."""
    with open_plain(path) as file:
        try:
            with Image.open(file, formats=["PNG"]) as picture:
                text = picture.info.get(name)
        except Exception as error:  # of many kinds, whatever in the file is damaged
            raise Unreadable(path, "this is no PNG, or it is damaged") from error
    return str(text) if isinstance(text, str) else None
