"""Runs as they lie on the disk, for looking at: those that train now and those that ended long ago read the same.

A folder may hold anything, so all that is read is checked like a request. A run that cannot be read is set aside with its reason,
and is never in the way of the others.
"""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from ..config import check_run_name
from ..dataset.png_text import png_text
from ..errors import AtelierError
from ..files import Unreadable, is_file, is_inside, open_plain, parse_json
from .layout import HISTORY_FILE, MEASURED_FILE, RUN_FILE, SAMPLE, SAMPLES_FOLDER, film_of
from .record import read_record

FADE = 0.02
"""Share of a step in the running mean of the loss (half of it is 35 steps old at most)."""
MOST_ROWS = 2000
"""Rows in one answer; more are thinned out."""
KEPT = 4
"""Runs whose rows stay in memory."""
LONGEST = 64 * 1024
"""Bytes of a row; a longer one is none of ours."""
MOST_BYTES = 256 * 2**20
"""Bytes of a history: some two million steps."""
BLOCK = 2**20
"""Bytes read at once."""
LARGE = 1e100
"""A number beyond this in a history stands for one that was not finite."""
BEFORE = "start"
"""The label of what was drawn before the first step."""
LONGEST_PROMPT = 500
"""Characters of a prompt that are told."""


_tails: OrderedDict[Path, Tail] = OrderedDict()
_lock = threading.Lock()


class Tail:
    """The rows of a .jsonl file that grows; only what is new is read.

    Rows with a ``loss`` get a ``smooth``: m_k = m_(k-1) + a_k (loss_k - m_(k-1)) with a_k = max(FADE, 1 / k), so that it
    begins as the mean of all.
    """

    def __init__(self, path: Path):
        self.path = path
        self._restart(0)

    def _restart(self, file: int) -> None:
        self.rows = list[dict[str, Any]]()
        self._file, self._place, self._mean = file, 0, 0.0

    def read(self) -> list[dict[str, Any]]:
        """All whole rows so far; a file that was replaced (the run went on from an earlier step) is read anew.

        Unreadable for what is no plain file, or larger than any history.
        """
        try:
            with open_plain(self.path) as file:
                stat = os.fstat(file.fileno())
                if stat.st_size > MOST_BYTES:
                    raise Unreadable(self.path, f"this has more than {MOST_BYTES >> 20} MB")
                if stat.st_ino != self._file or stat.st_size < self._place:
                    self._restart(stat.st_ino)
                file.seek(self._place)
                for line in self._lines(file):
                    self._add(parsed(line))
        except FileNotFoundError:
            self._restart(0)
        return list(self.rows)

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        """The whole lines from here on; of one that is too long only its end, which is no row."""
        rest = b""
        while block := file.read(BLOCK):
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                self._place += len(line) + 1
                yield line
            if len(rest) > LONGEST:
                self._place += len(rest) - 1
                rest = b"-"

    def _add(self, row: dict[str, Any] | None) -> None:
        if row is None:
            return
        if row.get("loss") is not None:
            self._mean += max(FADE, 1 / (len(self.rows) + 1)) * (row["loss"] - self._mean)
            row["smooth"] = self._mean
        self.rows.append(row)


def number(value: Any) -> float | None:
    """``value`` if it is a number that can be drawn, else None."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGE < value < LARGE
    return value if fits else None


def parsed(line: bytes) -> dict[str, Any] | None:
    """A line as a row of finite numbers (None for what is none); None for what is damaged."""
    try:
        row = parse_json(line, finite=False)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < 2**53:
        return None
    return {name: number(value) for name, value in row.items()}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file in a run's folder."""
    if path.is_symlink() and not is_inside(path, path.parents[1]):
        raise Unreadable(path, "this is a link that leads out of the runs' folder")
    with _lock:
        tail = _tails.pop(path, None) or Tail(path)
        _tails[path] = tail
        while len(_tails) > 2 * KEPT:
            _tails.popitem(last=False)
        return tail.read()


def folder_of(name: str, runs: Path) -> Path:
    """The folder of a run; AtelierError for a name that is none, or leads out of ``runs``."""
    folder = runs / check_run_name(name)
    if not is_inside(folder, runs) or not is_file(folder / RUN_FILE):
        raise AtelierError(f"name: there is no run called {name!r}.")
    return folder


def names(runs: Path) -> list[str]:
    """All runs that can be read, the one that was written to last in front."""
    return [name for name, why in _all(runs) if why is None]


def set_aside(runs: Path) -> dict[str, str]:
    """The folders of ``runs`` that hold a run which cannot be read, by name, each with the reason in a sentence."""
    return {name: why for name, why in _all(runs) if why is not None}


def _all(runs: Path) -> list[tuple[str, str | None]]:
    """(name, what is wrong or None) of every folder with a run.json, the one that was written to last in front."""
    return [(name, _why(runs / name, _stamp(runs / name / RUN_FILE))) for name, _ in written_last(runs)]


def written_last(runs: Path) -> list[tuple[str, float]]:
    """Every folder with a run.json, sound or not, and when it was written to (seconds since 1970), the latest in front."""
    found = []
    try:
        folders = [entry.name for entry in os.scandir(runs)]
    except OSError:
        return []
    for name in folders:
        try:
            os.lstat(runs / name / RUN_FILE)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # the reason is found below
        stamps = [stamp for file in (HISTORY_FILE, RUN_FILE) if (stamp := _stamp(runs / name / file)) is not None]
        found.append((max(stamps, default=(0, 0, 0)), name))
    return [(name, stamp[0] / 1e9) for stamp, name in sorted(found, reverse=True)]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """(time of change in ns, bytes, inode) of a plain file; None for what is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if is_file(path) else None


@lru_cache(maxsize=4096)
def _why(folder: Path, _stamp: tuple[int, int, int] | None) -> str | None:
    """What is wrong with a run that was last changed then; None if it can be read."""
    try:
        if check_run_name(folder.name) != folder.name:
            raise AtelierError(f"name: {folder.name!r} begins or ends with a blank.")
        if not is_inside(folder, folder.parent):
            raise AtelierError("this is a link that leads out of the runs' folder.")
        read_record(folder)
    except FileNotFoundError:
        return f"{RUN_FILE}: this leads nowhere. Rename or delete the run's folder."
    except Unreadable as error:
        return f"{error}. Rename or delete the run's folder."
    except AtelierError as error:
        return str(error)
    return None


def _is_of(name: str, folder: Path) -> bool:
    """Whether the recipe ``name`` made this run: those of one called ``ink-2`` look like the second of ``ink``."""
    try:
        return read_record(folder).recipe in (None, name)
    except (AtelierError, FileNotFoundError):
        return True


def _is_swept(name: str, folder: Path) -> bool:
    """Whether this run is a training of the recipe's sweep."""
    try:
        record = read_record(folder)
    except (AtelierError, FileNotFoundError):
        return False
    config = record.values.get("config")
    return record.recipe == name and isinstance(config, dict) and bool(config.get("varied"))


def latest(name: str, runs: Path, running: list[str]) -> str | None:
    """Of the runs that a recipe of this name has made (``ink``, ``ink-2``, ``ink rank 8`` of a sweep) the one that trains, else
    the newest.

    Those that cannot be read are passed over (``set_aside`` names them); AtelierError if there are no others.
    """
    own = re.compile(rf"{re.escape(check_run_name(name))}(-\d+)?")
    found = [(run, None) for run in running] + _all(runs)
    mine = [
        (run, why) for run, why in found
        if (own.fullmatch(run) and _is_of(name, runs / run)) or (run.startswith(f"{name} ") and _is_swept(name, runs / run))
    ]  # fmt: skip
    sound = next((run for run, why in mine if why is None), None)
    if sound is None and mine:
        raise AtelierError(f"{mine[0][0]}: {mine[0][1]}")
    return sound


def state(name: str, runs: Path, since: int = 0) -> dict[str, Any]:
    """What there is of a run: ``rows`` of the steps after ``since``, and everything that is short."""
    folder = folder_of(name, runs)
    try:
        facts = read_record(folder)
        rows = _rows(folder / HISTORY_FILE)
        measured = _rows(folder / MEASURED_FILE)
    except (Unreadable, FileNotFoundError) as error:
        why = error if isinstance(error, Unreadable) else f"{RUN_FILE}: this is gone"
        raise AtelierError(f"{name}: damaged, {why}. Rename or delete the run's folder.") from error
    new = rows[bisect_right(rows, since, key=lambda row: row["step"]) :]
    return {
        "name": name,
        "total": facts.total,
        "steps_per_epoch": facts.steps_per_epoch,
        "last": rows[-1]["step"] if rows else 0,
        "rows": thinned(new),
        "measured": measured,
        "saved": list(facts.saved),
        "finished": bool(facts.saved) and facts.saved[-1]["kind"] == "last",
        "failed": facts.failed,
        "opening": facts.opening,
        "account": dict(facts.account),
        "samples": samples(folder),
    }


def thinned(rows: list[dict[str, Any]], most: int = MOST_ROWS) -> list[dict[str, Any]]:
    """At most ``most`` of the rows, evenly, the last one among them."""
    if len(rows) <= most:
        return rows
    return [rows[-1 - (len(rows) - 1) * i // (most - 1)] for i in range(most - 1, -1, -1)]


def samples(folder: Path) -> list[dict[str, Any]]:
    """The sample pictures in the order in which they were drawn: file, ``label`` (start, epoch 3, step 250), ``number`` of the
    prompt, the ``prompt`` itself where the picture says it (else None), and the ``stamp`` of its last change, by which
    one that was drawn anew is told. One that is a frame of a film names that ``film``.

    Nothing that a link brings in from outside the runs' folder is one.
    """
    out: list[tuple[int, dict[str, Any]]] = []
    place = folder / SAMPLES_FOLDER
    if not is_inside(place, folder.parent):
        return []
    try:
        entries = list(os.scandir(place))
    except OSError:
        return []
    for entry in entries:
        match = SAMPLE.fullmatch(entry.name.removeprefix(folder.name))
        path = place / entry.name
        stamp = _stamp(path) if match is not None else None
        if match is not None and stamp is not None and (not entry.is_symlink() or is_inside(path, folder.parent)):
            label = f"epoch {int(match['epoch'])}" if match["epoch"] else f"step {int(match['step'])}"
            facts = {
                "file": entry.name,
                "label": BEFORE if match["epoch"] == "000000" else label,
                "number": int(match["number"] or 1),
            }
            film = film_of(path)
            if is_file(film) and is_inside(film, folder.parent):
                facts["film"] = film.name
            out.append((stamp[0], {**facts, "prompt": _prompt(path, stamp), "stamp": stamp[0] // 10**6}))
    return [row for _, row in sorted(out, key=lambda pair: (pair[0], pair[1]["file"]))]


@lru_cache(maxsize=8192)
def _prompt(path: Path, _stamp: tuple[int, int, int]) -> str | None:
    """The prompt of a sample, by the picture itself: prompts may have been changed while a run was interrupted."""
    try:
        facts = parse_json((png_text(path, "parameters") or "").encode("utf-8", "replace"), finite=False)
    except (AtelierError, OSError, ValueError):
        return None
    prompt = facts.get("prompt") if isinstance(facts, dict) else None
    return prompt[:LONGEST_PROMPT] if isinstance(prompt, str) else None


def measured(folder: Path) -> dict[int, tuple[float | None, float]]:
    """Step -> (held-out loss, loss of the trained share) as a run recorded them; nothing where it didn't."""
    out: dict[int, tuple[float | None, float]] = {}
    try:
        rows = _rows(folder / MEASURED_FILE)
    except Unreadable:
        return out
    for row in rows:
        if row.get("training") is not None:
            out[row["step"]] = (row.get("held_out"), float(row["training"]))
    return out
