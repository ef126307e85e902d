"""Change stamps of folders: noticing changes, without being alarmed by captions that this pack wrote itself.

ComfyUI asks a node before every run whether its files have changed. When Auto Caption has filled a folder during a run, the
captions that Load Dataset sees before the next run are new, yet nothing happened that the graph behind it doesn't know:
without care the next run would train everything again. So a file that was written here, and not touched since, keeps the
stamp of what it replaced. The memory lasts as long as the process, as do ComfyUI's cached results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

Stamp = tuple[int, int] | None
"""(bytes, mtime in ns), or None where there is no file; (-1, mtime) for a file that was written here and has gone since."""

_ours: dict[Path, tuple[Stamp, Stamp]] = {}
"""Path of a file that was written here -> (stamp when written, stamp that it keeps)."""


def _on_disk(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def stamp(path: Path) -> Stamp:
    """What stands for the file's state."""
    now = _on_disk(path)
    if path not in _ours:
        return now
    written, kept = _ours[path]
    if now == written:
        return kept
    return (-1, written[1]) if now is None and written else now


def remember(path: Path, before: Stamp) -> None:
    """Note that ``path`` was just written here; ``before`` is its ``stamp`` from before."""
    _ours[path] = (_on_disk(path), before)


def files_stamp(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over names and stamps of files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(repr((str(path), stamp(path))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
