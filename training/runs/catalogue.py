"""Catalogue of runs: how far each came and what it takes on the disk; and the deletion of one that is not wanted any more.

Only what a run itself has written is deleted. Whatever else lies in its folders stays, and is named.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import AtelierError
from ..files import LEFT_OVER, open_plain
from .layout import (
    CELLS_FOLDER,
    FAVOURITES,
    FILM_OR_CELL,
    FILM_OR_SAMPLE,
    GRIDS_FOLDER,
    HISTORY_FILE,
    INPUTS_FILE,
    MEASURED_FILE,
    OLDER_STATE_FILE,
    OWNER_FILE,
    PAGE,
    RUN_FILE,
    SAMPLES_FOLDER,
    STATE_FILE,
    STATE_FOLDER,
)
from .owner import NOTE, Owner
from .preview import is_ours, preview_of
from .reader import parsed, set_aside, written_last
from .record import Record, read_record

What = Literal["state", "records", "all"]
"""What is deleted: what the run needs to go on; all but its LoRA files; everything."""
WHATS: tuple[str, ...] = get_args(What)
END = 32 * 1024
"""Bytes at the end of a history that are read for its last rows."""
RECENT = 50
"""Steps over which the last loss is taken: that of a single one says little."""
FOLDERS = (STATE_FOLDER, SAMPLES_FOLDER, GRIDS_FOLDER)
FILES = (HISTORY_FILE, MEASURED_FILE, INPUTS_FILE, NOTE)
"""What a run writes into its folder, beside the record and the lock, which go last."""


@dataclass
class Deleted:
    """What came of a deletion."""

    bytes: int = 0
    left: list[str] = field(default_factory=list)
    """What lies in the run's folders and is none of its own, and so stayed."""


def entries(runs: Path, loras: Path) -> list[dict[str, Any]]:
    """Every run, the one that was written to last in front: its place in training, its files, and its bytes by kind.

    One that cannot be read has a ``why`` and its sizes.
    """
    damaged = set_aside(runs)
    return [_entry(name, runs, loras, damaged.get(name, ""), at) for name, at in written_last(runs)]


def _entry(name: str, runs: Path, loras: Path, why: str, at: float) -> dict[str, Any]:
    folder, lora_folder = runs / name, loras / name
    record = Record()
    if not why:
        try:
            record = read_record(folder)
        except (AtelierError, FileNotFoundError) as error:  # it changed just now
            why = str(error)
    parts, files = sizes_in(folder), sizes_in(lora_folder)
    sizes = {part: parts.pop(part, 0) for part in FOLDERS}
    sizes |= {"rest": sum(parts.values()), "loras": sum(files.values())}
    step, loss = _end(folder / HISTORY_FILE) if not why else (0, None)
    family = record.values.get("family", "")
    return {
        "name": name,
        "why": why,
        "written": at,
        "step": max([step, *(row["step"] for row in record.saved)]),
        "total": record.total,
        "family": family if isinstance(family, str) else "",
        "loss": loss,
        "finished": bool(record.saved) and record.saved[-1]["kind"] == "last",
        "failed": record.failed,
        "state": any(os.path.lexists(folder / file) for file in (STATE_FILE, OLDER_STATE_FILE)),
        "sizes": sizes,
        "files": [{**row, "bytes": files[row["file"]]} for row in record.saved if files.get(row["file"])],
    }


def _end(history: Path) -> tuple[int, float | None]:
    """The last step of a history and the mean loss up to it; (0, None) for one without whole rows."""
    try:
        with open_plain(history) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - END))
            lines = file.read(END).splitlines()[-RECENT - 1 :]
    except (OSError, AtelierError):
        return 0, None
    rows = [row for row in map(parsed, lines) if row is not None][-RECENT:]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    return (rows[-1]["step"] if rows else 0), (sum(losses) / len(losses) if losses else None)


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of all that lies in a folder, by the name at its top; a file with two names counts once, and no link is followed."""
    sizes, seen = dict[str, int](), set[tuple[int, int]]()
    waiting = [("", folder)] if not is_led(folder) else []
    while waiting:
        top, place = waiting.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            with suppress(OSError):
                name, found = top or entry.name, os.lstat(entry.path)
                if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    sizes[name] = sizes.get(name, 0) + found.st_size
                elif stat.S_ISDIR(found.st_mode) and not is_led(path := Path(entry.path)):
                    waiting.append((name, path))
    return sizes


def is_led(path: Path) -> bool:
    """Whether a link stands at ``path``, of any kind: Windows' junctions look like folders."""
    expected = os.path.join(os.path.realpath(path.parent), path.name)
    return path.is_symlink() or os.path.normcase(os.path.realpath(path)) != os.path.normcase(expected)


def delete(name: str, runs: Path, loras: Path, what: What) -> Deleted:
    """Deletes what is asked for of a run that nobody trains; AtelierError where it may not, or the system refuses.

    ``run.json`` goes last, so that a run of which only a part could be deleted is listed still.
    """
    if what not in WHATS:
        raise AtelierError(f"what: {what!r} is none of {', '.join(WHATS)}.")
    folder, lora_folder = runs / name, loras / name
    if name not in dict(written_last(runs)):
        raise AtelierError(f"name: there is no run called {name!r}.")
    for place in (folder, lora_folder):
        if os.path.lexists(place) and is_led(place):
            raise AtelierError(f"{place}: this is a link, and nothing behind it is deleted. Delete it by hand.")
    before = _bytes(folder, lora_folder)
    owner = Owner(folder)
    owner.take()
    try:
        if what == "all":
            for path in _own_loras(name, folder, lora_folder):
                _remove(path)
        for path in _own(name, folder, (STATE_FOLDER,) if what == "state" else tuple(_patterns(name))):
            _remove(path)
        if what != "state":
            for path in (*(folder / file for file in FILES), *_unfinished(folder), folder / RUN_FILE):
                _remove(path)
    finally:
        owner.release()
    if what == "state":
        left = _emptied(folder / STATE_FOLDER)
    else:
        _remove(folder / OWNER_FILE)
        left = [*_emptied(folder, tuple(_patterns(name))), *(_emptied(lora_folder) if what == "all" else ())]
    return Deleted(before - _bytes(folder, lora_folder), left)


def _bytes(*folders: Path) -> int:
    return sum(sum(sizes_in(folder).values()) for folder in folders)


def _patterns(name: str) -> dict[str, re.Pattern[str]]:
    """What a run calls its files, by the folder in which they lie; folders within others come first."""
    return {
        f"{GRIDS_FOLDER}/{CELLS_FOLDER}": FILM_OR_CELL,
        GRIDS_FOLDER: re.compile(rf"{PAGE.pattern}|{re.escape(FAVOURITES)}"),
        SAMPLES_FOLDER: re.compile(rf"{re.escape(name)}{FILM_OR_SAMPLE.pattern}"),
        STATE_FOLDER: re.compile("|".join(re.escape(file.rpartition("/")[2]) for file in (STATE_FILE, OLDER_STATE_FILE))),
    }


def _own(name: str, folder: Path, parts: Sequence[str]) -> list[Path]:
    """The run's own files in these of its folders; none in one that is a link, or lies in one."""
    own = []
    for part in parts:
        place, pattern = folder / part, _patterns(name)[part]
        if not any(is_led(one) for one in (place, *place.parents[: part.count("/")])):
            own += [path for path in _inside(place) if pattern.fullmatch(path.name) and not _is_folder(path)]
            own += _unfinished(place)
    return own


def _own_loras(name: str, folder: Path, lora_folder: Path) -> list[Path]:
    """The LoRA files that the run has written, by its record and by their names, and the pictures that it put beside them."""
    pattern = re.compile(rf"{re.escape(name)}(-\d{{6}}|-step\d{{8}})?\.safetensors(\.damaged)?")
    try:
        record = read_record(folder)
    except (AtelierError, FileNotFoundError):
        record = Record()
    known = {row["file"] for row in record.saved}
    files = [path for path in _inside(lora_folder) if path.name in known or pattern.fullmatch(path.name)]
    pictures = [picture for file in files if is_ours(picture := preview_of(file), record.pictures.get(file.name, ""))]
    return [*files, *pictures, *_unfinished(lora_folder)]


def _unfinished(folder: Path) -> list[Path]:
    return [path for path in _inside(folder) if LEFT_OVER.search(path.name) and not _is_folder(path)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except OSError:
        return []


def _emptied(folder: Path, parts: Sequence[str] = ()) -> list[str]:
    """Removes a folder and these of its own folders where they are empty; tells what lies in those that are not."""
    if os.path.lexists(folder) and is_led(folder):
        return [str(folder)]
    left: list[str] = []
    for part in parts:
        if not is_led(folder / part):
            left += _emptied(folder / part)
    told = {str(folder / part) for part in parts if not is_led(folder / part)}
    left = [path for path in [*left, *map(str, _inside(folder))] if path not in told]
    with suppress(OSError):
        folder.rmdir()  # only if it is empty
    return left


def _remove(path: Path) -> None:
    """A file or a link, behind which nothing is touched; a folder in its place is none of the run's."""
    if _is_folder(path):
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise AtelierError(
            f"{error.filename or path}: this could not be deleted ({error.strerror}). Close what uses it and delete again."
        ) from error
