"""Record of a run: ``run.json``, of which nothing is believed before it was looked at.

A run's folder may come from another computer or a damaged disk. Names in it must lead to files of the run's own, numbers must be
numbers; what isn't so is said in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..files import Unreadable, is_inside, read_json
from .layout import RUN_FILE

SaveKind = Literal["epoch", "step", "last", "moment"]
"""A numbered epoch; a step in between; the last epoch, unnumbered; or the moment at which a run was stopped."""
FILE = re.compile(r"[^\W_][\w .+-]*\.safetensors")
"""A LoRA file's name: that of the run, which ``check_run_name`` allowed, a number perhaps, and the ending."""
LARGEST = 16 * 2**20
"""Bytes of a run.json, which has a short line for every saved file."""


@dataclass(frozen=True)
class SavedLoRA:
    """One LoRA file of a run."""

    path: Path
    epoch: int
    """1-based; for a file of the moment the epoch that was under way."""
    step: int
    """Steps trained since the run began."""
    kind: SaveKind = "epoch"

    @property
    def label(self) -> str:
        """What stands above its column in a grid."""
        return f"step {self.step}" if self.kind in ("step", "moment") else f"epoch {self.epoch}"

    @property
    def counted(self) -> int:
        """The number in its label, by which a person may ask for it."""
        return self.step if self.kind in ("step", "moment") else self.epoch


@dataclass(frozen=True)
class Record:
    """What ``run.json`` holds."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Everything, as it was written."""
    saved: tuple[Mapping[str, Any], ...] = ()
    """``file`` (a plain name), ``epoch``, ``step`` and ``kind`` of every LoRA file, oldest first."""
    total: int | None = None
    """Steps of the whole run."""
    steps_per_epoch: int | None = None
    failed: str = ""
    """The error that ended the run."""
    opening: str = ""
    """Whether the run went on or began when it was opened last, and why."""
    changes: tuple[Mapping[str, Any], ...] = ()
    """What has changed on the way (``changed``, in words) at which ``step``, where somebody went on all the same."""
    recipe: str | None = None
    """Name of the recipe that made the run."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """Digests of the pictures that the run has put beside its LoRA files, by the names of these."""
    account: Mapping[str, list[str]] = field(default_factory=dict)
    """What the run has said of itself since it was opened last, see ``account.py``."""


def read_record(folder: Path) -> Record:
    """The record of the run in ``folder``; Unreadable saying what is wrong in it, FileNotFoundError without one."""
    path = folder / RUN_FILE
    if path.is_symlink() and not is_inside(path, folder.parent):
        raise Unreadable(path, "this is a link that leads out of the runs' folder")
    values = read_json(path, LARGEST)

    def check(fits: bool, name: str) -> None:
        if not fits:
            raise Unreadable(path, f"{name!r} in it is not what a run writes")

    def rows(name: str) -> list[dict[str, Any]]:
        found = values.get(name, [])
        check(isinstance(found, list) and all(isinstance(row, dict) for row in found), name)
        return list(found)

    check(isinstance(values, dict), "all")
    saved, changes, config = rows("saved"), rows("changes"), values.get("config")
    for row in saved:
        check(row.get("kind") in get_args(SaveKind) and _is_count(row.get("epoch")) and _is_count(row.get("step")), "saved")
        check(isinstance(row.get("file"), str) and FILE.fullmatch(row["file"]) is not None, "file")
    for row in changes:
        check(_is_count(row.get("step")) and isinstance(row.get("changed"), str), "changes")
    for name in ("total", "steps_per_epoch"):
        check(values.get(name) is None or _is_count(values[name]), name)
    for name in ("failed", "opening"):
        check(isinstance(values.get(name, ""), str), name)
    account = values.get("account", {})
    check(isinstance(account, dict) and all(map(_are_texts, account.values())), "account")
    pictures = values.get("pictures", {})
    check(isinstance(pictures, dict) and _are_texts(list(pictures.values())), "pictures")
    recipe = config.get("name") if isinstance(config, dict) else None
    return Record(
        values,
        tuple({key: row[key] for key in ("file", "epoch", "step", "kind")} for row in saved),
        values.get("total"), values.get("steps_per_epoch"), values.get("failed", ""), values.get("opening", ""),
        tuple({key: row[key] for key in ("step", "changed")} for row in changes),
        recipe if isinstance(recipe, str) else None, pictures, account,
    )  # fmt: skip


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
