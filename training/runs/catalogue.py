"""Catalogue of runs: how far each came and what it takes on the disk; and the deletion of one that is not wanted any more.

Only what a run itself has written is deleted. Whatever else lies in its folders stays, and is named.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import AtelierError
from ..files import LEFT_OVER, open_plain
from .layout import (
    GRIDS_FOLDER,
    HISTORY_FILE,
    INPUTS_FILE,
    MEASURED_FILE,
    OLDER_STATE_FILE,
    OWNER_FILE,
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
    sizes = {part: size_of(folder / part) for part in FOLDERS}
    sizes["rest"] = max(0, size_of(folder) - sum(sizes.values()))
    sizes["loras"] = size_of(lora_folder)
    step, loss = _end(folder / HISTORY_FILE) if not why else (0, None)
    files = [{**row, "bytes": size_of(lora_folder / row["file"])} for row in record.saved]
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
        "files": [file for file in files if file["bytes"]],
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


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder; a file with two names counts once, and no link is followed."""
    seen = dict[tuple[int, int], int]()
    for one in _walked(path):
        with suppress(OSError):
            found = os.lstat(one)
            if stat.S_ISREG(found.st_mode):
                seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def _walked(path: Path) -> Iterator[Path]:
    yield path
    if path.is_symlink() or not path.is_dir():
        return
    with suppress(OSError):
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            yield from _walked(path / entry.name)


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
        if place.is_symlink():
            raise AtelierError(f"{place}: this is a link, and nothing behind it is deleted. Delete it by hand.")
    before = size_of(folder) + size_of(lora_folder)
    owner = Owner(folder)
    owner.take()
    try:
        if what == "all":
            for path in _own_loras(name, folder, lora_folder):
                _remove(path)
        for part in (STATE_FOLDER,) if what == "state" else FOLDERS:
            _remove(folder / part)
        if what != "state":
            for path in (*(folder / file for file in FILES), *_unfinished(folder), folder / RUN_FILE):
                _remove(path)
    finally:
        owner.release()
    left: list[str] = []
    if what != "state":
        _remove(folder / OWNER_FILE)
        left = [*_emptied(folder), *(_emptied(lora_folder) if what == "all" else ())]
    return Deleted(before - size_of(folder) - size_of(lora_folder), left)


def _own_loras(name: str, folder: Path, lora_folder: Path) -> list[Path]:
    """The LoRA files that the run has written, by its record and by their names, and the pictures beside them."""
    pattern = re.compile(rf"{re.escape(name)}(-\d{{6}}|-step\d{{8}})?\.safetensors(\.damaged)?")
    try:
        known = {row["file"] for row in read_record(folder).saved}
    except (AtelierError, FileNotFoundError):
        known = set()
    files = [path for path in _inside(lora_folder) if path.name in known or pattern.fullmatch(path.name)]
    pictures = [preview for file in files if is_ours(preview := preview_of(file))]
    return [*files, *pictures, *_unfinished(lora_folder)]


def _unfinished(folder: Path) -> list[Path]:
    return [path for path in _inside(folder) if LEFT_OVER.search(path.name)]


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except OSError:
        return []


def _emptied(folder: Path) -> list[str]:
    """Removes a folder that is empty, else tells what is in it."""
    left = [str(path) for path in _inside(folder)]
    if not left:
        with suppress(OSError):
            folder.rmdir()
    return left


def _remove(path: Path) -> None:
    """A file, a link, or a folder with all in it; nothing behind a link is touched."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise AtelierError(
            f"{error.filename or path}: this could not be deleted ({error.strerror}). Close what uses it and delete again."
        ) from error
