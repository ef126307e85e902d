"""Captions in JSON Lines files: one line a picture, ``{"file_name": "a/1.png", "text": "a cat"}``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import AtelierError
from ..files import Unreadable, read_limited
from .captions import decode

MAX_BYTES = 1 << 28
TEXT = ("text", "caption")
"""Names under which the caption is looked for, in this order."""


def read_jsonl(file: Path) -> tuple[dict[Path, str], str]:
    """(caption by picture, encoding); ``file_name`` counts from the file's folder, and the last of several lines wins.

    Names are compared with pictures that were found in the folder, never opened. AtelierError naming file and line.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise AtelierError(f"{file}: this file has more than {MAX_BYTES >> 20} MB. Take it out of the folder.")
        text, encoding = decode(read_limited(file, MAX_BYTES))
    except OSError as error:
        raise AtelierError(f"{file}: this file cannot be read ({error.strerror}).") from error
    except Unreadable as error:
        raise AtelierError(f"{file}: this file cannot be read ({error.why}).") from error
    captions = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file_name"]
            caption = next(row[field] for field in TEXT if field in row)
        except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
            raise _bad(file, number) from error
        if not isinstance(name, str) or not (caption is None or isinstance(caption, str)):
            raise _bad(file, number)
        if caption is not None:
            captions[file.parent / name.replace("\\", "/")] = " ".join(caption.split())
    return captions, encoding


def _bad(file: Path, number: int) -> AtelierError:
    return AtelierError(f'{file}: line {number} is not of the form {{"file_name": "1.png", "text": "a caption"}}. Mend it.')


def captions_of(files: Iterable[Path], pictures: Iterable[Path]) -> tuple[dict[Path, str], list[str]]:
    """(caption by picture, warnings about unusual encodings and lines whose picture is not there)."""
    known, captions, warnings = set(pictures), {}, []
    for file in files:
        found, encoding = read_jsonl(file)
        if encoding != "UTF-8":
            warnings.append(f"{file.name} was read as {encoding}; save it as UTF-8 to be sure of every letter.")
        captions.update({path: text for path, text in found.items() if path in known})
        missing = [path.name for path in found if path not in known]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            warnings.append(f"{file.name} has captions of pictures that are not in the folder: {', '.join(missing[:3])}{more}.")
    return captions, warnings
