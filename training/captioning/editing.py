"""Caption editing from the canvas: captions are listed with a version each, and written back only over what was listed.

An edit carries the version of the file that the person saw. If the file has changed meanwhile, in an editor or by another tab,
nothing at all is written and the person is told; so an edit never undoes somebody's work. What an edit replaced comes back with
the answer, to the byte, which makes undoing it one more edit. A file keeps its encoding where that is certain and holds the text.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..config import SubsetConfig
from ..dataset.caption_reader import CaptionFile, CaptionReader
from ..dataset.captions import MAX_BYTES, caption_file_of, clean, some, unwritable
from ..dataset.encodings import encoded, writable
from ..dataset.walk import find
from ..dataset.words import parts
from ..errors import AtelierError
from ..files import is_inside, write_all
from .text import appended, fits, remover, replaced

NO_FILE = ""
"""Version of a caption file that is not there."""
MAX_EDITS = 10_000


class Changed(AtelierError):
    """Caption files are no longer what the person saw."""


class Unclear(AtelierError):
    """Caption files would have to be written in another encoding, which is for the person to say."""


@dataclass(frozen=True)
class Listed:
    """One picture's caption file."""

    picture: str
    """Path of the picture below the folder, with ``/``."""
    caption: str | None
    """With its lines; None without a file."""
    version: str
    """Digest of the file's bytes; ``NO_FILE`` without one."""


@dataclass(frozen=True)
class Edit:
    """What one caption shall be."""

    picture: str
    caption: str | None
    """None takes the file away, which undoes the making of it."""
    version: str
    """As it was listed."""
    original: str | None = None
    """Base64 of the file's bytes where they are not what ``caption`` would be written as; wins over it."""


def listed(folder: Path, config: SubsetConfig, root: Path | None = None) -> list[Listed]:
    """Every picture of the folder as ``LoadDataset`` finds them, in its order; AtelierError naming what cannot be read."""
    reader = CaptionReader(config)
    files = _files(folder, config, root)
    return [_listed(name, reader.file(file)) for name, file in files.items()]


def write(
    folder: Path, edits: Sequence[Edit], config: SubsetConfig, root: Path | None = None, as_utf8: bool = False
) -> tuple[list[Edit], list[Listed]]:
    """(the edits that undo these, how the files stand now).

    All are written, or none: Changed names the files that are not as they were listed, Unclear those whose encoding is a guess
    or lacks a letter unless ``as_utf8`` allows to write them anew, AtelierError a picture that is not in the folder or a text
    that no caption file can hold.
    """
    if len(edits) > MAX_EDITS:
        raise AtelierError(f"captions: {len(edits)} edits at once are too many; {MAX_EDITS} is the most.")
    files = _files(folder, config, root)
    for edit in edits:
        if edit.picture not in files:
            raise AtelierError(f"captions: {edit.picture[:200]!r} is not a picture of {folder.name}. Load the folder again.")
    first: dict[Path, Edit] = {}
    for edit in edits:
        other = first.setdefault(files[edit.picture], edit)
        if edit.picture == other.picture and edit is not other:
            raise AtelierError(f"captions: there are two edits of {edit.picture}. Send one of them.")
        if dataclasses.replace(edit, picture=other.picture) != other:
            raise AtelierError(
                f"captions: {other.picture} and {edit.picture} share one caption file, and these texts differ. Nothing was "
                "saved. Give both the same text, or rename one of the pictures."
            )
    reader = CaptionReader(config)
    before = {edit.picture: reader.file(files[edit.picture]) for edit in edits}
    stale = [edit.picture for edit in edits if version_of(before[edit.picture]) != edit.version]
    if stale:
        raise Changed(f"captions: {some(stale)} changed on the disk since you opened them. Load the folder again, then edit.")
    wanted = {edit.picture: _bytes(edit, before[edit.picture], config.caption_encoding) for edit in edits}
    unclear = [edit.picture for edit in edits if not (as_utf8 or _keeps_encoding(edit, before[edit.picture]))]
    if unclear:
        raise Unclear(
            f"captions: {some(unclear)}: the encoding of these files is only a guess, or lacks a letter of the new text. Nothing "
            "was saved. Allow to write them as UTF-8, or set caption_encoding."
        )
    _put({files[name]: data for name, data in wanted.items()}, {files[name]: found for name, found in before.items()})
    after = CaptionReader(config)
    now = [_written(edit, files[edit.picture], wanted[edit.picture], after) for edit in edits]
    return [_undo(one, before[one.picture]) for one in now], now


def version_of(found: CaptionFile | None) -> str:
    return NO_FILE if found is None else _digest(found.data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _bytes(edit: Edit, before: CaptionFile | None, declared: str) -> bytes | None:
    """What the file shall hold, None for no file: in its own encoding where that is certain and has the letters, else UTF-8."""
    if edit.original is not None:
        try:
            data = base64.b64decode(edit.original, validate=True)
        except ValueError as error:
            raise AtelierError(
                f"captions: what is to be restored for {edit.picture} is damaged. Load the folder again."
            ) from error
        if len(data) > MAX_BYTES:
            raise AtelierError(f"captions: the text of {edit.picture} is no caption (more than 1 MB).")
        return data
    if edit.caption is None:
        return None
    _check(edit.picture, edit.caption)
    own = before.encoding if before and not before.guessed else "utf-8"
    return writable(f"{clean(edit.caption)}\n", own, declared)[0]


def _keeps_encoding(edit: Edit, before: CaptionFile | None) -> bool:
    """Whether nothing has to be asked: the encoding is certain and has every letter, or no text is written over it."""
    if before is None or edit.caption is None or edit.original is not None:
        return True
    return not before.guessed and encoded(clean(edit.caption), before.encoding) is not None


def _put(wanted: Mapping[Path, bytes | None], before: Mapping[Path, CaptionFile | None]) -> None:
    """Write or remove the files; where one fails, those before it are put back, or named if that fails, too."""
    done: list[Path] = []
    try:
        write_all({path: data for path, data in wanted.items() if data is not None}, done.append)
        for path, data in wanted.items():
            if data is None:
                path.unlink(missing_ok=True)
                done.append(path)
    except BaseException as error:
        kept = [path for path in done if not _put_back(path, before[path])]
        if kept:
            names = some([path.name for path in kept])
            raise AtelierError(
                f"captions: writing broke off ({error}). {names} had been written by then, the others not."
            ) from error
        if isinstance(error, OSError):
            raise unwritable(Path(error.filename or next(iter(wanted))), error) from error
        raise


def _put_back(path: Path, before: CaptionFile | None) -> bool:
    with suppress(OSError, AtelierError):
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write_all({path: before.data}, lambda _: None)
        return True
    return False


def _undo(now: Listed, before: CaptionFile | None) -> Edit:
    if before is None:
        return Edit(now.picture, None, now.version)
    plain = before.data == f"{before.text}\n".encode()
    return Edit(now.picture, before.text, now.version, None if plain else base64.b64encode(before.data).decode())


def with_tag(captions: Mapping[str, str], tag: str) -> dict[str, str]:
    """Those captions that have ``tag`` as one of their parts; ``*`` in it stands for any letters."""
    one = fits([tag])
    return {
        picture: caption for picture, caption in captions.items()
        if any(one(part) for line in caption.split("\n") for part in parts(line))
    }  # fmt: skip


def with_more(captions: Mapping[str, str], tags: str, first: bool = False) -> dict[str, str]:
    """Every caption with ``tags`` behind it, or before it if ``first``; what it has already is not added."""
    if not first:
        return changed(captions, lambda line: appended(line, tags))
    less = remover(parts(tags))
    return changed(captions, lambda line: appended(tags, less(line)))


def with_less(captions: Mapping[str, str], tags: Sequence[str]) -> dict[str, str]:
    """Every caption without ``tags``."""
    return changed(captions, remover(tags))


def with_other(captions: Mapping[str, str], old: str, new: str) -> dict[str, str]:
    """Every caption with the words ``old`` replaced by ``new``."""
    if not old.strip():
        raise AtelierError("replace: say which words are to be replaced.")
    return changed(captions, lambda line: replaced(line, [(old.strip(), new.strip())]))


def changed(captions: Mapping[str, str], work: Callable[[str], str]) -> dict[str, str]:
    """Every caption with ``work`` done on each of its lines."""
    return {picture: "\n".join(map(work, caption.split("\n"))) for picture, caption in captions.items()}


def _files(folder: Path, config: SubsetConfig, root: Path | None) -> dict[str, Path]:
    """Caption file by the name of its picture; a link that leads out of ``root`` is refused."""
    inside = (root or folder).resolve()
    files = {}
    for found in find(folder, root, config.nested, config.caption_extension, bool(config.clip_counts)):
        for picture in found.pictures:
            file = caption_file_of(picture, config.caption_extension, found.captions.get(picture))
            if os.path.islink(file) and not is_inside(file, inside):
                raise AtelierError(f"{file}: this is a link that leads out of {inside}. Copy the file into the folder instead.")
            files[picture.relative_to(folder).as_posix()] = file
    return files


def _listed(picture: str, found: CaptionFile | None) -> Listed:
    return Listed(picture, None if found is None else found.text, version_of(found))


def _written(edit: Edit, file: Path, data: bytes | None, reader: CaptionReader) -> Listed:
    """How a file stands that was just written, also where nobody could tell the encoding of what was restored."""
    try:
        return _listed(edit.picture, None if data is None else reader.parsed(file, data))
    except AtelierError:
        return Listed(edit.picture, edit.caption, _digest(data or b""))


def _check(picture: str, caption: str) -> None:
    if "\0" in caption or len(caption.encode("utf-8", "replace")) > MAX_BYTES:
        raise AtelierError(f"captions: the text of {picture} is no caption (more than 1 MB, or not text).")
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AtelierError(f"captions: the text of {picture} has a letter that no file can hold.") from error
