"""Pictures that a person takes out of a folder: they are put aside with all that belongs to them, and can be put back."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..config import SubsetConfig
from ..errors import AtelierError
from ..files import is_inside, move
from .films import is_film
from .listing import FoundFolder, leads_outside
from .samples import some
from .walk import find

FOLDER = ".removed-pictures"
"""A hidden folder inside that of the pictures, which no dataset reads."""
ENTRY = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def pictures_of(folder: Path, config: SubsetConfig, root: Path) -> dict[str, tuple[Path, FoundFolder]]:
    """(file, the folder's listing) of every picture, and film where films are used, by its path below the folder, with ``/``."""
    every = find(folder, root, config.nested, config.caption_extension, bool(config.clip_counts))
    return {path.relative_to(folder).as_posix(): (path, found) for found in every for path in found.pictures}


def unused_films(folder: Path, config: SubsetConfig, root: Path) -> dict[str, tuple[Path, FoundFolder]]:
    """The same of the films that these settings do not use; what belongs to them is theirs all the same."""
    if config.clip_counts:
        return {}
    try:
        every = find(folder, root, config.nested, config.caption_extension, films=True)
    except AtelierError:  # a film that nobody uses, such as a link to elsewhere, is in nobody's way
        return {}
    films = ((path, found) for found in every for path in found.pictures if is_film(path))
    return {path.relative_to(folder).as_posix(): (path, found) for path, found in films}


def chosen(
    names: Sequence[str], known: Mapping[str, tuple[Path, FoundFolder]], folder: Path
) -> dict[str, tuple[Path, FoundFolder]]:  # fmt: skip
    """Those of the pictures that are meant; AtelierError naming one that is not there."""
    missing = [name for name in names if name not in known]
    if missing:
        raise AtelierError(f"pictures: {some(missing)}: not in {folder.name}. Load the folder again.")
    return {name: known[name] for name in names}


def remove(folder: Path, names: Sequence[str], config: SubsetConfig, root: Path) -> str:
    """Puts pictures aside, each with what belongs to it and to no other; gives the entry by which ``restore`` puts them back.

    All are put aside, or none. AtelierError for a picture that is not there, and where the folder cannot be written to.
    """
    known = pictures_of(folder, config, root)
    return _set_aside(folder, _owned(chosen(names, known, folder), known, folder, config, root), root)


def take_back(folder: Path, came: Sequence[str], config: SubsetConfig, root: Path, since: float = 0.0) -> str:
    """Puts files aside that were brought into the folder, with what the pictures among them have got ``since``; as ``remove``.

    ``came``: paths below the folder. ``since``: seconds since the epoch; what lay there before it stays. What has gone is passed
    over; AtelierError where nothing is left of them.
    """
    files = [path for path in map(folder.joinpath, came) if _is_own(path, folder) and path.is_file()]
    if not files:
        raise AtelierError(f"pictures: what had come into {folder.name} is not there any more.")
    try:
        known = pictures_of(folder, config, root)
    except AtelierError:  # there are none, of those that these settings use
        known = {}
    leaving = [name for name in came if name in known]
    got = (file for file in _owned(leaving, known, folder, config, root) if _written(file) >= since)
    return _set_aside(folder, dict.fromkeys([*files, *got]), root)


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _owned(
    leaving: Collection[str], known: Mapping[str, tuple[Path, FoundFolder]], folder: Path, config: SubsetConfig, root: Path
) -> dict[Path, None]:  # fmt: skip
    """The files of pictures that leave: what belongs to one that stays, stays, and so does what lies in a folder beside."""
    owners = {**known, **unused_films(folder, config, root)}
    every = {name: found.of(path, config.caption_extension) for name, (path, found) in owners.items()}
    staying = {file for name, files in every.items() if name not in leaving for file in files}
    owned = (file for name in leaving for file in every[name] if file not in staying)
    return dict.fromkeys(file for file in owned if file.is_relative_to(folder))


def _is_own(path: Path, folder: Path) -> bool:
    """Whether it is a file's place in this folder, and neither hidden nor behind a link out of it."""
    steps = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    return bool(steps) and not any(step == ".." or step.startswith(".") for step in steps) and is_inside(path.parent, folder)


def _set_aside(folder: Path, files: Collection[Path], root: Path) -> str:
    entry = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    _move([(file, _place(folder, root) / entry / file.relative_to(folder)) for file in files])
    return entry


def restore(folder: Path, entry: str, root: Path) -> list[str]:
    """Puts the files of an entry back where they were; gives their paths below the folder.

    AtelierError for an entry that is not there, and naming a file whose place something else has taken; then none is put back.
    """
    aside = _place(folder, root) / entry
    if not ENTRY.fullmatch(entry) or not aside.is_dir() or aside.is_symlink():
        raise AtelierError(f"pictures: what was taken out as {entry[:40]!r} is not in {folder.name}/{FOLDER} any more.")
    files = sorted(path for path in aside.rglob("*") if path.is_symlink() or not path.is_dir())
    below = [path.relative_to(aside) for path in files]
    taken = [path.as_posix() for path in below if os.path.lexists(folder / path)]
    if taken:
        raise AtelierError(
            f"pictures: {some(taken)}: another file has this name now. What was taken out lies in "
            f"{folder.name}/{FOLDER}/{entry}; move it from there by hand."
        )
    _move([(file, folder / path) for file, path in zip(files, below, strict=True)])
    _drop_empty(aside)
    return [path.as_posix() for path in below]


def _place(folder: Path, root: Path) -> Path:
    place = folder / FOLDER
    if leads_outside(place, root.resolve()):
        raise AtelierError(f"pictures: {place} is a link that leads out of {root}. Remove it.")
    return place


def _move(pairs: Sequence[tuple[Path, Path]]) -> None:
    """All files go to their new places, or all stay."""
    done: list[tuple[Path, Path]] = []
    try:
        for start, end in pairs:
            end.parent.mkdir(parents=True, exist_ok=True)
            move(start, end)
            done.append((start, end))
    except OSError as error:
        for start, end in reversed(done):
            with suppress(OSError):
                move(end, start)
        in_use = getattr(error, "winerror", None) == 32  # ERROR_SHARING_VIOLATION
        remedy = "Wait until nothing reads it any more, and try again" if in_use else "Allow writing in this folder"
        raise AtelierError(f"pictures: {pairs[len(done)][0]} cannot be moved ({error.strerror}). {remedy}.") from error


def _drop_empty(aside: Path) -> None:
    for path in [*sorted((p for p in aside.rglob("*") if p.is_dir()), reverse=True), aside, aside.parent]:
        with suppress(OSError):
            path.rmdir()
