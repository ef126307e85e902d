"""The pause between captioning and training: a node waits until the person has read the captions and says go.

The node's thread waits here; the server's thread tells the pages who waits, and lets it go on. Nothing else is shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from ..dataset.captions import caption_file_of
from ..dataset.change_stamps import remember, stamp
from ..dataset.renewed import renewed
from ..dataset.samples import Dataset
from ..dataset.scan import refresh_captions
from ..errors import AtelierError
from .protocol import Check

LOOK = 0.2
"""Seconds between two looks whether the run was cancelled."""
Answer = Callable[[str], str]
"""A picture's caption, asked again; the picture is named as for ``workload``."""


@dataclass(frozen=True)
class _Waiting:
    """A node that waits."""

    said: Mapping[str, Any]
    wishes: SimpleQueue[tuple[str, Future[str]] | None] = field(default_factory=SimpleQueue)
    """Pictures whose captions are asked again, and where the answer goes; None: go on."""


_waiting: dict[str, _Waiting] = {}
_lock = threading.Lock()


def waiting() -> list[dict[str, Any]]:
    """What each node that waits has said of itself."""
    with _lock:
        return [dict(one.said) for one in _waiting.values()]


def go_on(node: str) -> bool:
    """Lets a node go on; False if it doesn't wait."""
    with _lock:
        one = _waiting.get(node)
        if one is not None:
            one.wishes.put(None)
        return one is not None


def again(node: str, picture: str) -> Future[str]:
    """The caption that a node which waits would write for a picture now; AtelierError if it doesn't wait."""
    answer: Future[str] = Future()
    with _lock:
        if node not in _waiting:
            raise AtelierError(f"node: {node!r} doesn't wait any more.")
        _waiting[node].wishes.put((picture, answer))
    return answer


def hold(node: str, said: Mapping[str, Any], tell: Callable[[], None], check: Check, answer: Answer) -> None:
    """Waits until somebody lets ``node`` go on, and answers what is asked meanwhile, in the node's own thread.

    ``said``: plain JSON values for the pages; ``tell`` is called when it begins to wait and when that has ended, however it ends;
    ``check`` raises to cancel. An AtelierError of ``answer`` is for whoever asked, anything else ends the waiting.
    """
    one = _Waiting(said)
    with _lock:
        _waiting[node] = one
    try:
        tell()
        while True:
            try:
                wish = one.wishes.get(timeout=LOOK)
            except Empty:
                check()
                continue
            if wish is None:
                return
            _answer(*wish, answer)
    finally:
        with _lock:
            _waiting.pop(node, None)
        while not one.wishes.empty():
            if (late := one.wishes.get()) is not None and late[1].set_running_or_notify_cancel():
                late[1].set_exception(AtelierError("captions: the run doesn't wait any more. Ask again."))
        tell()


def _answer(picture: str, place: Future[str], answer: Answer) -> None:
    if not place.set_running_or_notify_cancel():  # nobody listens any more
        return
    try:
        place.set_result(answer(picture))
    except AtelierError as error:
        place.set_exception(error)
    except BaseException:
        place.set_exception(AtelierError("captions: the run was cancelled."))
        raise


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
