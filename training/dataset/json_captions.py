"""Captions in a JSON file beside a picture, of which there may be several: ``{"caption": "...", "caption_short": "..."}``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import AtelierError
from ..files import parse_json

NAME = re.compile(r"(.*_)?(captions?|prompts?|descriptions?|texts?)(_.*)?|(long|short|medium|detailed|brief)")
FORM = '{"caption": "a long caption", "caption_short": "a short one"}'


def json_captions(path: Path, data: bytes) -> list[str]:
    """The captions of a file of these bytes; AtelierError naming one that holds none."""
    try:
        found = texts_of(parse_json(data))
        "".join(found).encode()  # half a pair of UTF-16, which JSON can hold, is no letter
    except ValueError as error:
        raise AtelierError(
            f"{path}: this is no JSON file of captions ({error}). Mend it, or take it out of the folder."
        ) from error
    if not found:
        raise AtelierError(f"{path}: no caption was found in this file, such as {FORM}. Write one, or take it out of the folder.")
    return found


def texts_of(value: Any) -> list[str]:
    """The texts in a value: itself, those of a list, or under the names of an object that captions have."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list):
        return [text for one in value if isinstance(one, str) for text in texts_of(one)]
    if isinstance(value, dict):
        return [text for name, one in value.items() if NAME.fullmatch(name.casefold()) for text in texts_of(one)]
    return []
