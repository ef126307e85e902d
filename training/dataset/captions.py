"""Caption files beside the pictures, and the text of captions."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..config import SubsetConfig
from ..errors import AtelierError
from ..files import replacing
from .words import COMMAS, composed, whole_word

MAX_BYTES = 1 << 20
"""A larger caption file is taken for a mistake."""
NUMBERING = re.compile(r"(?:\s*\(\d+\)|_\d+|[- ]0\d*)$")
FIELDS = re.compile(r"\{([^{}]*)\}")
INVISIBLE = dict.fromkeys((0xFEFF, 0x200B, 0x2060))
"""Marks that editors leave inside a text. Joiners stay: emoji and several scripts are spelt with them."""
NAMED = 3


def caption_path(picture: Path, extension: str = ".txt") -> Path:
    """The caption file of a picture: the same name with another suffix, in the same folder."""
    return picture.with_suffix(extension)


def caption_file_of(picture: Path, extension: str, other: Path | None) -> Path:
    """Where the picture's caption is read and written: the usual file, unless only ``other`` is there, under another name."""
    usual = caption_path(picture, extension)
    return other if other is not None and not os.path.lexists(usual) else usual


def clean(text: str) -> str:
    """The text without what nobody sees: empty lines, outer spaces, tabs, control characters, marks of encodings."""
    lines = (_visible(line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _visible(line: str) -> str:
    line = line.translate(INVISIBLE)
    return line if line.isprintable() else "".join(" " if unicodedata.category(c) == "Cc" else c for c in line)


def arranged(text: str, config: SubsetConfig) -> str:
    """A cleaned text as the subset means it: one text, its lines joined by a space, or alternatives, one a line, or the first."""
    lines = clean(text).split("\n")
    if config.caption_lines == "first line":
        return lines[0]
    return "\n".join(lines) if config.caption_lines == "alternatives" else " ".join(lines)


def several(texts: Sequence[str], config: SubsetConfig) -> str:
    """Captions of one picture as alternatives, one a line, each once; an empty one counts only where there is no other."""
    return "\n".join(dict.fromkeys(line for text in texts for line in arranged(text, config).split("\n") if line))


def of_one_source(texts: Sequence[str], config: SubsetConfig) -> str:
    """The same of captions that stand in one file, of which only the first may be meant."""
    found = several(texts, config)
    return found.split("\n")[0] if config.caption_lines == "first line" else found


def write_caption(path: Path, text: str) -> None:
    """Write the caption as UTF-8 with a line end, whole or not at all; AtelierError naming the file if that fails."""
    put_caption(path, f"{text}\n".encode(), durable=True)


def put_caption(path: Path, data: bytes, durable: bool) -> None:
    """The caption file of these bytes, see ``replacing``."""
    try:
        with replacing(path, durable) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> AtelierError:
    long = error.errno == errno.ENAMETOOLONG
    remedy = "Shorten the picture's name." if long else "Allow writing in this folder, or copy the pictures."
    return AtelierError(f"{path}: the caption cannot be written ({error.strerror}). {remedy}")


def some(names: Sequence[str]) -> str:
    """The first few names and the number of the others."""
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def with_prefix(prefix: str, caption: str) -> str:
    """``prefix`` as it stands in front of the caption, once."""
    return caption if not prefix or composed(caption).startswith(composed(prefix)) else prefix + caption


def with_trigger(trigger: str, caption: str) -> str:
    """The caption with the trigger word as its first, comma-separated part: ("ohwx", "a cat") -> "ohwx, a cat".

    A caption that starts with the trigger word already is left as it is; one that starts with it in other capitals gets it as it
    is written here, since some text encoders tell capitals apart.
    """
    trigger, caption = trigger.strip().rstrip(COMMAS).rstrip(), caption.strip()
    if not trigger:
        return caption
    whole, word = composed(caption), composed(trigger)
    start = whole[: len(word)]
    if start.casefold() == word.casefold() and whole_word(whole, 0, len(word)):
        return caption if start == word else trigger + whole[len(word) :]
    return f"{trigger}, {caption}" if caption else trigger


def name_in_words(stem: str) -> str:
    """A file name as words: "cat-face_01" -> "cat face"; numbering at the end goes unless it is all there is."""
    bare = stem
    while (shorter := NUMBERING.sub("", bare)) != bare and shorter.strip(" -_"):
        bare = shorter
    return " ".join(re.sub(r"[-_]+", " ", bare).split())


def caption_from_file_name(path: Path, pattern: str = "{name}", folder: str = "") -> str:
    """``pattern`` with {name} = the file name in words and {folder} = the class text of the folder (its own name by default)."""
    values = {"name": name_in_words(path.stem), "folder": folder or name_in_words(path.parent.name)}
    unknown = [field for field in FIELDS.findall(pattern) if field not in values]
    if unknown:
        raise AtelierError(f"pattern: {{{unknown[0]}}} is not known here; use {{name}} or {{folder}}.")
    return FIELDS.sub(lambda match: values[match[1]], pattern).strip()
