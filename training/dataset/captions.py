"""Caption files beside the pictures, and the text of captions."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ..errors import AtelierError
from ..files import Unreadable, read_limited, write_text

MAX_BYTES = 1 << 20
"""A larger caption file is taken for a mistake."""
NUMBERING = re.compile(r"(?:\s*\(\d+\)|_\d+|[- ]0\d*)$")
FIELDS = re.compile(r"\{([^{}]*)\}")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def caption_path(picture: Path, extension: str = ".txt") -> Path:
    """The caption file of a picture: the same name with another suffix, in the same folder."""
    return picture.with_suffix(extension)


def decode(data: bytes) -> tuple[str, str]:
    """(text, encoding): UTF-8 with or without BOM, UTF-16 by its BOM, else Windows-1252, else Latin-1."""
    if data.startswith(UTF_16):
        return data.decode("utf-16", errors="replace"), "UTF-16"
    for encoding, name in (("utf-8-sig", "UTF-8"), ("cp1252", "Windows-1252")):
        try:
            return data.decode(encoding), name
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1"), "Latin-1"


def one_line(text: str) -> str:
    """The text with its lines joined by a space."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def read_caption(path: Path) -> tuple[str | None, str | None]:
    """(caption, warning): None without a file; lines are joined with a space; the warning names an unusual encoding."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise AtelierError(f"{path}: this is too large for a caption file (more than 1 MB). Take it out of the folder.")
        data = read_limited(path, MAX_BYTES)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise AtelierError(f"{path}: the caption cannot be read ({error.strerror}).") from error
    except Unreadable as error:
        raise AtelierError(f"{path}: the caption cannot be read ({error.why}).") from error
    text, encoding = decode(data)
    warning = None if encoding == "UTF-8" else f"{path.name} was read as {encoding}; save it as UTF-8 to be sure of every letter."
    return one_line(text), warning


def write_caption(path: Path, text: str) -> None:
    """Write the caption as UTF-8 with a line end, whole or not at all; AtelierError naming the file if that fails."""
    try:
        write_text(path, f"{text}\n")
    except OSError as error:
        raise AtelierError(
            f"{path}: the caption cannot be written ({error.strerror}). Allow writing in this folder, or copy the pictures."
        ) from error


def with_prefix(prefix: str, caption: str) -> str:
    """``prefix`` as it stands in front of the caption, once."""
    return caption if not prefix or caption.startswith(prefix) else prefix + caption


def with_trigger(trigger: str, caption: str) -> str:
    """The caption with the trigger word as its first, comma-separated part: ("ohwx", "a cat") -> "ohwx, a cat".

    A caption that starts with the trigger word already is left as it is.
    """
    trigger, caption = trigger.strip().rstrip(",").rstrip(), caption.strip()
    if not trigger or re.match(rf"{re.escape(trigger)}(?!\w)", caption):
        return caption
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
