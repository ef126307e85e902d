"""Looking into many pictures at once, with progress, so that a cancel ends it between two of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

WORKERS = 4
"""Pictures that are looked into at once; decoding a large one takes up to 0.7 GB."""
AHEAD = 2 * WORKERS
"""Pictures that are begun at most before the first of them is done with: as many are looked into in vain when cancelled."""
One = TypeVar("One")
Found = TypeVar("Found")
Advance = Callable[[int], None]
"""Gets the number of steps that are done, and raises when the person cancels."""


class Steps:
    """Steps of work, counted; ``progress(total)`` gives the function that shows them and raises when cancelled."""

    def __init__(self, progress: Callable[[int], Advance] | None, total: int) -> None:
        self._advance = progress(total) if progress and total else None
        self.done = 0

    def step(self) -> None:
        self.done += 1
        if self._advance:
            self._advance(self.done)


def in_parallel(work: Callable[[One], Found], items: Iterable[One], steps: Steps) -> list[Found]:
    """``work`` of every item, in their order, one step each; when something raises, no further item is begun."""
    pool = ThreadPoolExecutor(WORKERS)
    waiting: deque[Future[Found]] = deque()
    left = iter(items)
    out = []
    try:
        waiting.extend(pool.submit(work, item) for item in islice(left, AHEAD))
        while waiting:
            out.append(waiting.popleft().result())
            steps.step()
            waiting.extend(pool.submit(work, item) for item in islice(left, 1))
        return out
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
