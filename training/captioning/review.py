"""The pause between captioning and training: a node waits until the person has read the captions and says go.

The node's thread waits here; the server's thread tells the pages who waits, and lets it go on. Nothing else is shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..dataset.captions import caption_file_of
from ..dataset.change_stamps import remember, stamp
from ..dataset.renewed import renewed
from ..dataset.samples import Dataset
from ..dataset.scan import refresh_captions
from .protocol import Check

LOOK = 0.2
"""Seconds between two looks whether the run was cancelled."""
_waiting: dict[str, tuple[threading.Event, Mapping[str, Any]]] = {}
_lock = threading.Lock()


def waiting() -> list[dict[str, Any]]:
    """What each node that waits has said of itself."""
    with _lock:
        return [dict(said) for _, said in _waiting.values()]


def go_on(node: str) -> bool:
    """Lets a node go on; False if it doesn't wait."""
    with _lock:
        event, _ = _waiting.get(node, (None, None))
    if event is not None:
        event.set()
    return event is not None


def hold(node: str, said: Mapping[str, Any], tell: Callable[[], None], check: Check) -> None:
    """Waits until somebody lets ``node`` go on. ``said``: plain JSON values for the pages; ``tell`` is called when it begins to
    wait and when that has ended, however it ends; ``check`` raises to cancel.
    """
    event = threading.Event()
    with _lock:
        _waiting[node] = (event, said)
    try:
        tell()
        while not event.wait(LOOK):
            check()
    finally:
        with _lock:
            _waiting.pop(node, None)
        tell()


def reviewed(dataset: Dataset, wait: Callable[[], None]) -> tuple[Dataset, tuple[str, ...]]:
    """(the dataset as it is on the disk after ``wait``, what the person should know of that).

    Captions that were edited meanwhile count, pictures that were turned are trained as they lie now, and those that were taken
    out are not trained. AtelierError if none is left. The next run doesn't take the edits for changes, since this one knows them.
    """
    files = {
        caption_file_of(sample.path, subset.config.caption_extension, sample.caption_file)
        for subset in dataset.subsets for sample in subset.samples if not sample.ready
    }  # fmt: skip
    before = {file: stamp(file) for file in files}
    wait()
    for file, earlier in before.items():
        if stamp(file) != earlier:
            remember(file, earlier)
    now, notes = renewed(dataset)
    return refresh_captions(now), notes
