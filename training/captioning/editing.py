"""Caption editing from the canvas: captions are listed with a version each, and written back only over what was listed.

An edit carries the version of the file that the person saw. If the file has changed meanwhile, in an editor or by another tab,
nothing at all is written and the person is told; so an edit never undoes somebody's work. What an edit replaced comes back with
the answer, which makes undoing it one more edit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..dataset.captions import MAX_BYTES, caption_path, read_caption, write_caption
from ..dataset.walk import find
from ..errors import AtelierError
from ..files import Unreadable, is_inside, read_limited
from .text import appended, parts, replaced, without

NO_FILE = ""
"""Version of a caption file that is not there."""
MAX_EDITS = 10_000


class Changed(AtelierError):
    """Caption files are no longer what the person saw."""


@dataclass(frozen=True)
class Listed:
    """One picture's caption file."""

    picture: str
    """Path of the picture below the folder, with ``/``."""
    caption: str | None
    """None without a file."""
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


def version_of(file: Path) -> str:
    try:
        return hashlib.sha256(read_limited(file, MAX_BYTES)).hexdigest()[:16]
    except FileNotFoundError:
        return NO_FILE
    except OSError as error:
        raise AtelierError(f"{file}: the caption cannot be read ({error.strerror}).") from error
    except Unreadable as error:
        raise AtelierError(f"{file}: the caption cannot be read ({error.why}).") from error


def listed(folder: Path, extension: str = ".txt", root: Path | None = None, nested: bool = False) -> list[Listed]:
    """Every picture of the folder as ``LoadDataset`` finds them, in its order; AtelierError naming what cannot be read."""
    return [_listed(name, file) for name, file in _files(folder, extension, root, nested).items()]


def write(
    folder: Path, edits: Sequence[Edit], extension: str = ".txt", root: Path | None = None, nested: bool = False
) -> tuple[list[Edit], list[Listed]]:
    """(the edits that undo these, how the files stand now).

    All are written, or none: Changed names the files that are not as they were listed, AtelierError a picture that is not in the
    folder or a text that no caption file can hold.
    """
    if len(edits) > MAX_EDITS:
        raise AtelierError(f"captions: {len(edits)} edits at once are too many; {MAX_EDITS} is the most.")
    files = _files(folder, extension, root, nested)
    for edit in edits:
        if edit.picture not in files:
            raise AtelierError(f"captions: {edit.picture!r} is not a picture of {folder.name}. Load the folder again.")
        _check(edit)
    if len({files[edit.picture] for edit in edits}) < len(edits):
        raise AtelierError("captions: two edits mean the same caption file. Send one of them.")
    changed = [edit.picture for edit in edits if version_of(files[edit.picture]) != edit.version]
    if changed:
        names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise Changed(f"captions: {names} changed on the disk since you opened them. Load the folder again, then edit.")
    before = {edit.picture: read_caption(files[edit.picture])[0] for edit in edits}
    done: list[str] = []
    try:
        for edit in edits:
            _put(files[edit.picture], edit.caption)
            done.append(edit.picture)
    except BaseException:
        for picture in done:
            _put(files[picture], before[picture])
        raise
    now = [_listed(edit.picture, files[edit.picture]) for edit in edits]
    return [Edit(one.picture, before[one.picture], one.version) for one in now], now


def with_tag(captions: Mapping[str, str], tag: str) -> dict[str, str]:
    """Those captions that have ``tag`` as one of their parts; ``*`` in it stands for any letters."""
    return {picture: caption for picture, caption in captions.items() if without(caption, [tag]) != caption}


def with_more(captions: Mapping[str, str], tags: str, first: bool = False) -> dict[str, str]:
    """Every caption with ``tags`` behind it, or before it if ``first``; what it has already is not added."""
    if not first:
        return {picture: appended(caption, tags) for picture, caption in captions.items()}
    return {picture: appended(tags, without(caption, parts(tags))) for picture, caption in captions.items()}


def with_less(captions: Mapping[str, str], tags: Sequence[str]) -> dict[str, str]:
    """Every caption without ``tags``."""
    return {picture: without(caption, tags) for picture, caption in captions.items()}


def with_other(captions: Mapping[str, str], old: str, new: str) -> dict[str, str]:
    """Every caption with the words ``old`` replaced by ``new``."""
    if not old.strip():
        raise AtelierError("replace: say which words are to be replaced.")
    return {picture: replaced(caption, [(old.strip(), new.strip())]) for picture, caption in captions.items()}


def _files(folder: Path, extension: str, root: Path | None, nested: bool) -> dict[str, Path]:
    """Caption file by the name of its picture; a link that leads out of ``root`` is refused."""
    inside = (root or folder).resolve()
    files = {}
    for found in find(folder, root, nested):
        for picture in found.pictures:
            file = caption_path(picture, extension)
            if file.is_symlink() and not is_inside(file, inside):
                raise AtelierError(f"{file}: this is a link that leads out of {inside}. Copy the file into the folder instead.")
            files[picture.relative_to(folder).as_posix()] = file
    return files


def _put(file: Path, caption: str | None) -> None:
    if caption is None:
        file.unlink(missing_ok=True)
    else:
        write_caption(file, caption)


def _listed(picture: str, file: Path) -> Listed:
    return Listed(picture, read_caption(file)[0], version_of(file))


def _check(edit: Edit) -> None:
    if edit.caption is None:
        return
    if "\0" in edit.caption or len(edit.caption.encode("utf-8", "replace")) > MAX_BYTES:
        raise AtelierError(f"captions: the text of {edit.picture} is no caption (more than 1 MB, or not text).")
    if len(edit.caption.splitlines()) > 1:
        raise AtelierError(f"captions: the text of {edit.picture} has several lines; a caption is one.")
    try:
        edit.caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AtelierError(f"captions: the text of {edit.picture} has a letter that no file can hold.") from error
