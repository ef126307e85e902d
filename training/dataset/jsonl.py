"""Captions in JSON Lines files: one line a picture, ``{"file_name": "a/1.png", "text": "a cat"}``; a list of texts is
alternatives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import SubsetConfig
from ..errors import AtelierError
from ..files import Unreadable, parse_json, read_limited
from .captions import arranged, of_one_source, some
from .encodings import SAMPLE, Decoded, guess, text_of
from .words import composed

MAX_BYTES = 1 << 28
FORM = '{"file_name": "1.png", "text": "a caption"}'
TEXT = ("text", "caption")
"""Names under which the caption is looked for, in this order."""


def read_jsonl(file: Path, config: SubsetConfig) -> tuple[dict[Path, str], Decoded, list[str]]:
    """(caption by picture, the file's text and encoding, names that stand in several lines, of which the last wins).

    ``file_name`` counts from the file's folder. Names are compared with pictures that were found in the folder, never opened.
    A file no line of which has a ``file_name`` is about something else, and holds none. AtelierError naming file and line.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise AtelierError(f"{file}: this file has more than {MAX_BYTES >> 20} MB. Take it out of the folder.")
        data = read_limited(file, MAX_BYTES)
    except OSError as error:
        raise AtelierError(f"{file}: this file cannot be read ({error.strerror}).") from error
    except Unreadable as error:
        raise AtelierError(f"{file}: this file cannot be read ({error.why}).") from error
    found = text_of(file, data, config.caption_encoding, lambda: guess(_beyond_ascii(data)))
    captions: dict[Path, str] = {}
    twice, others, rows = [], list[int](), 0
    for number, line in enumerate(found.text.split("\n"), 1):
        if not line.strip("\ufeff \t\r"):
            continue
        row = _object(file, number, line.strip("\ufeff"))
        if isinstance(row, dict) and "file_name" not in row:
            others.append(number)
            continue
        name, caption = _row(file, number, row)
        rows += 1
        if caption is None:
            continue
        path = file.parent / name.replace("\\", "/")
        text = arranged(caption, config) if isinstance(caption, str) else of_one_source(caption, config)
        twice += [path.name] if captions.get(path, text) != text else []
        captions[path] = text
    if others and rows:
        raise _bad(file, others[0])
    return captions, found, twice


def _beyond_ascii(data: bytes) -> bytes:
    """The lines that have letters to guess by, so that a long English beginning does not hide them."""
    out = bytearray()
    for line in data.split(b"\n"):
        if len(out) >= SAMPLE:
            break
        out += line + b"\n" if not line.isascii() else b""
    return bytes(out)


def _object(file: Path, number: int, line: str) -> Any:
    """What one line stands for."""
    try:
        return parse_json(line.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise _bad(file, number) from error


def _row(file: Path, number: int, row: Any) -> tuple[str, str | list[str] | None]:
    """(picture's name, its caption or captions) of one line."""
    try:
        name = row["file_name"]
        caption = next(row[field] for field in TEXT if field in row)
        said = "".join(caption) if isinstance(caption, list) else caption
        f"{name}{said}".encode()  # half a pair of UTF-16, which JSON can hold, is no letter
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise _bad(file, number) from error
    texts = caption if isinstance(caption, list) else [caption or ""]
    if not isinstance(name, str) or "\0" in name or not all(isinstance(text, str) for text in texts):
        raise _bad(file, number)
    return name, caption


def _bad(file: Path, number: int) -> AtelierError:
    return AtelierError(f"{file}: line {number} is not of the form {FORM}. Mend it, or take the file out of the folder.")


def captions_of(files: Iterable[Path], pictures: Iterable[Path], config: SubsetConfig) -> tuple[dict[Path, str], list[str]]:
    """(caption by picture, warnings about encodings, names that stand twice, and lines whose picture is not there)."""
    known = {composed(str(path)): path for path in pictures}
    captions: dict[Path, str] = {}
    warnings = []
    for file in files:
        found, stored, twice = read_jsonl(file, config)
        if stored.guessed:
            warnings.append(
                f"{file.name} was read as {stored.encoding.upper()}, a guess by its letters. If it is right, set "
                f"caption_encoding to {stored.encoding}, else to the right one."
            )
        elif stored.encoding not in ("utf-8", "utf-8-sig"):
            warnings.append(f"{file.name} is in {stored.encoding.upper()}.")
        if not found:
            warnings.append(f"{file.name} holds no captions, which stand in lines {FORM}; it is not used.")
        there = {known.get(composed(str(path))): text for path, text in found.items()}
        captions.update({path: text for path, text in there.items() if path is not None})
        if twice:
            warnings.append(f"{file.name} has several captions of one picture, of which the last counts: {some(twice)}.")
        missing = [path.name for path in found if composed(str(path)) not in known]
        if missing:
            warnings.append(f"{file.name} has captions of pictures that are not in the folder: {some(missing)}.")
    return captions, warnings
