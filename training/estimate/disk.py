"""Room on the disks of a run: what it keeps to go on may lie on another one than its LoRA files."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import room_on_disk
from ..performance.memory import size_text

STATES = 2
"""The newest, and the one before it."""


def beside_loras(runs: Path, loras: Path, state_bytes: int | None) -> tuple[int | None, list[str]]:
    """(what of ``state_bytes`` goes to the disk of the LoRA files, the caution where another disk has too little room for it)."""
    if state_bytes is None or not _are_apart(runs, loras):
        return state_bytes, []
    needed, free = STATES * state_bytes, room_on_disk(runs)
    if free is None or needed <= free:
        return 0, []
    return 0, [
        f"disk: what the run needs to go on takes about {size_text(needed)} in {runs}, and {size_text(free)} are free there. "
        "Make room."
    ]


def _are_apart(one: Path, other: Path) -> bool:
    """Whether two folders lie, or will lie, on different disks; where the system does not tell, they do not."""
    try:
        first, second = (os.stat(next(p for p in (folder, *folder.parents) if p.exists())).st_dev for folder in (one, other))
    except (OSError, StopIteration):
        return False
    return first != second
