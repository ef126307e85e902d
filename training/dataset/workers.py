"""Threads beside the one that is waited for: pictures that are looked into at once, and work that is done behind its back."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import TypeVar


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


WORKERS = min(8, max(4, cores()))
"""Pictures that are read at once; decoding a large one takes up to 0.7 GB. Four also where there are fewer cores: disks wait."""
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


class Behind:
    """Work that nobody waits for: done in one thread, in its order, at most ``limit`` pieces behind who gives it.

    ``threaded`` = False does each piece at once. What a piece raises is raised by a later ``do``, or at the end; nothing is begun
    after it. At the end all is done: whoever leaves the block with an error of their own (a cancel) waits for it too.
    """

    def __init__(self, threaded: bool, limit: int) -> None:
        self._pool = ThreadPoolExecutor(1) if threaded else None
        self._limit = limit
        self._waiting: deque[Future[None]] = deque()

    def do(self, work: Callable[[], None]) -> None:
        if self._pool is None:
            work()
            return
        while self._waiting and (len(self._waiting) >= self._limit or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work))

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self._pool is None:
            return
        try:
            while self._waiting:
                done = self._waiting.popleft()
                if kind is None:
                    done.result()
                elif done.exception() is not None:  # beside the error that ends the block, only whether to go on
                    break
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
