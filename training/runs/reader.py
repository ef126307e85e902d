"""Runs as they lie on the disk, for looking at: those that train now and those that ended long ago read the same."""

from __future__ import annotations

import json
import math
import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Any

from ..config import check_run_name
from ..errors import AtelierError
from .layout import HISTORY_FILE, MEASURED_FILE, RUN_FILE, SAMPLES_FOLDER

FADE = 0.02
"""Share of a step in the running mean of the loss (half of it is 35 steps old at most)."""
MOST_ROWS = 2000
"""Rows in one answer; more are thinned out."""
KEPT = 4
"""Runs whose rows stay in memory."""
SAMPLE = re.compile(r"-(?:(?P<epoch>\d{6})|step(?P<step>\d{8}))(?:-(?P<number>\d+))?\.png")

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
        """All whole rows so far; a file that was replaced (the run went on from an earlier step) is read anew."""
        try:
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._file or stat.st_size < self._place:
                    self._restart(stat.st_ino)
                file.seek(self._place)
                new = file.read()
        except FileNotFoundError:
            self._restart(0)
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            row = _row(line)
            if row is None:
                continue
            if isinstance(row.get("loss"), (int, float)):
                self._mean += max(FADE, 1 / (len(self.rows) + 1)) * (row["loss"] - self._mean)
                row["smooth"] = self._mean
            self.rows.append(row)
        return list(self.rows)


def _row(line: bytes) -> dict[str, Any] | None:
    """A line as a row of finite numbers; None for what is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _rows(path: Path) -> list[dict[str, Any]]:
    with _lock:
        tail = _tails.pop(path, None) or Tail(path)
        _tails[path] = tail
        while len(_tails) > 2 * KEPT:
            _tails.popitem(last=False)
        return tail.read()


def folder_of(name: str, runs: Path) -> Path:
    """The folder of a run; AtelierError for a name that is none, or leads out of ``runs``."""
    folder = runs / check_run_name(name)
    if not folder.resolve().is_relative_to(runs.resolve()) or not (folder / RUN_FILE).is_file():
        raise AtelierError(f"name: there is no run called {name!r}.")
    return folder


def names(runs: Path) -> list[str]:
    """All runs, the one that was written to last in front."""

    def changed(folder: Path) -> float:
        return max((f.stat().st_mtime for f in (folder / HISTORY_FILE, folder / RUN_FILE) if f.is_file()), default=0.0)

    found = [folder for folder in runs.iterdir() if (folder / RUN_FILE).is_file()] if runs.is_dir() else []
    return [folder.name for folder in sorted(found, key=changed, reverse=True)]


def latest(name: str, runs: Path, running: list[str]) -> str | None:
    """Of the runs that a recipe of this name has made (``ink``, ``ink-2``, ...) the one that trains, else the newest."""
    own = re.compile(rf"{re.escape(check_run_name(name))}(-\d+)?")
    return next((run for run in [*running, *names(runs)] if own.fullmatch(run)), None)


def state(name: str, runs: Path, since: int = 0) -> dict[str, Any]:
    """What there is of a run: ``rows`` of the steps after ``since``, and everything that is short."""
    folder = folder_of(name, runs)
    try:
        facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        saved = [{k: row[k] for k in ("file", "epoch", "step", "kind")} for row in facts.get("saved", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtelierError(f"{name}: {RUN_FILE} is damaged; rename or delete the run's folder.") from error
    rows = _rows(folder / HISTORY_FILE)
    new = rows[bisect_right(rows, since, key=lambda row: row["step"]) :]
    return {
        "name": name,
        "total": facts.get("total"),
        "steps_per_epoch": facts.get("steps_per_epoch"),
        "last": rows[-1]["step"] if rows else 0,
        "rows": thinned(new),
        "measured": _rows(folder / MEASURED_FILE),
        "saved": saved,
        "finished": bool(saved) and saved[-1]["kind"] == "last",
        "failed": str(facts.get("failed", "")),
        "samples": samples(folder),
    }


def thinned(rows: list[dict[str, Any]], most: int = MOST_ROWS) -> list[dict[str, Any]]:
    """At most ``most`` of the rows, evenly, the last one among them."""
    if len(rows) <= most:
        return rows
    return [rows[-1 - (len(rows) - 1) * i // (most - 1)] for i in range(most - 1, -1, -1)]


def samples(folder: Path) -> list[dict[str, Any]]:
    """The sample pictures in the order in which they were drawn: file, ``label`` (epoch 3, step 250) and prompt's number."""
    out = []
    for path in (folder / SAMPLES_FOLDER).glob("*.png"):
        match = SAMPLE.fullmatch(path.name.removeprefix(folder.name))
        if match is not None:
            label = f"epoch {int(match['epoch'])}" if match["epoch"] else f"step {int(match['step'])}"
            out.append((path.stat().st_mtime, {"file": path.name, "label": label, "number": int(match["number"] or 1)}))
    return [row for _, row in sorted(out, key=lambda pair: (pair[0], pair[1]["file"]))]


def measured(folder: Path) -> dict[int, tuple[float | None, float]]:
    """Step -> (held-out loss, loss of the trained share) as a run recorded them; nothing where it didn't."""
    out: dict[int, tuple[float | None, float]] = {}
    try:
        lines = (folder / MEASURED_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return out
    for line in lines:
        try:
            row = json.loads(line)
            out[int(row["step"])] = (row["held_out"], float(row["training"]))
        except (ValueError, KeyError, TypeError):
            break  # a line cut short by a kill
    return out
