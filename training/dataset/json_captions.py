"""Captions in a JSON file beside a picture, of which there may be several: ``{"caption": "...", "caption_short": "..."}``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import AtelierError
from ..files import parse_json

KIND, SIZE = r"(caption|prompt|description|text)s?", "long|short|medium|detailed|brief"
NAME = re.compile(rf"{KIND}([_ -]?({SIZE}|\d+))?|({SIZE}|\d+)[_ -]?{KIND}|{SIZE}")
"""Names of an object's captions, a closed list: ``negative_prompt``, ``caption_model`` and ``text_encoder`` are none."""
FORM = '{"caption": "a long caption", "caption_short": "a short one"}'


def json_captions(path: Path, data: bytes) -> tuple[list[str], list[str], list[str]]:
    """(captions, names under which they stand, names of other texts) of a file of these bytes; AtelierError naming one that
    holds none."""
    try:
        value = parse_json(data)
        found = texts_of(value)
        "".join(found).encode()  # half a pair of UTF-16, which JSON can hold, is no letter
    except ValueError as error:
        raise AtelierError(
            f"{path}: this is no JSON file of captions ({error}). Mend it, or take it out of the folder."
        ) from error
    if not found:
        raise AtelierError(f"{path}: no caption was found in this file, such as {FORM}. Write one, or take it out of the folder.")
    names = [name for name, one in value.items() if _said(one)] if isinstance(value, dict) else []
    return found, [name for name in names if is_name(name)], [name for name in names if not is_name(name)]


def is_name(name: str) -> bool:
    """Whether a caption stands under this name."""
    return bool(NAME.fullmatch(name.casefold()))


def texts_of(value: Any) -> list[str]:
    """The texts in a value: itself, those of a list, or under the names of an object that captions have."""
    if isinstance(value, dict):
        return [text for name, one in value.items() if is_name(name) for text in _said(one)]
    return _said(value)


def _said(value: Any) -> list[str]:
    every = value if isinstance(value, list) else [value]
    return [one for one in every if isinstance(one, str) and one.strip()]
