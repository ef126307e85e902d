"""Heartbeat between processes, beside their work, where a device of one could wait for another that is gone.

NCCL tells nobody: a kernel waits for its counterpart until a time limit ends the process. So a thread in each process says once
a second, by gloo, that it is well. Where one says that it leaves, or where its connection ends since it was killed, the others
give up what their devices wait for, and can keep what was learnt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

EVERY = 1.0
"""Seconds between two words."""
DRAIN = 10.0
"""Seconds that a process which leaves has for what its device was given before."""
GRACE = 2.0
"""Seconds for the last sum of gradients to come in, once another process is gone."""


class Lookout:
    """``group``: torch's, by gloo, for this alone. ``let_go``: gives up what devices wait for; called once, from the thread."""

    def __init__(self, group: Any, let_go: Callable[[], None], every: float = EVERY):
        self._group, self._let_go, self._every = group, let_go, every
        self._leaves = self._ended = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._sum: torch.cuda.Event | None = None
        self.heard = False
        """Whether another process, or this one, has left before its end."""
        self.intact = True
        """Whether all sums of gradients that this process has learnt from were whole."""

    @contextmanager
    def on(self, in_order: Callable[[BaseException], bool]) -> Iterator[None]:
        """While it lasts the others are listened to. ``in_order``: of an error, whether all processes leave for it together."""
        if self.heard:  # then there is nobody to talk to
            yield
            return
        self._leaves = self._ended = False
        self._wake.clear()
        self._thread = threading.Thread(target=self._listen, name="lookout", daemon=True)
        self._thread.start()
        try:
            yield
        except BaseException as error:
            self._end(not in_order(error))
            raise
        else:
            self._end(False)

    def summed(self, device: torch.device) -> None:
        """A sum of gradients was asked for on ``device``."""
        if device.type == "cuda":
            self._sum = torch.cuda.Event()
            self._sum.record()

    def leave(self, device: torch.device) -> None:
        """This process leaves before its end, with work on its device that others may wait for; that is done first."""
        if not self.heard and device.type == "cuda":
            with suppress(Exception):  # of a device that is broken
                done = torch.cuda.Event()
                done.record()
                _until(lambda: self.heard or done.query(), DRAIN)
        self._end(True)

    def _end(self, leaves: bool) -> None:
        self._leaves, self._ended = self._leaves or leaves, True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(DRAIN)

    def _listen(self) -> None:
        while True:
            words = torch.tensor([int(self._leaves), int(not self._ended)])
            try:
                dist.all_reduce(words, dist.ReduceOp.MAX, group=self._group)
            except RuntimeError:
                words[0] = 1
            leaves, goes_on = words.tolist()
            if leaves:
                self.heard = True
                self.intact = _until(self._is_summed, GRACE)
                self._let_go()
                return
            if not goes_on:
                return
            self._wake.wait(self._every)

    def _is_summed(self) -> bool:
        try:
            return self._sum is None or self._sum.query()
        except RuntimeError:  # of a device that is broken
            return False


def _until(done: Callable[[], bool], seconds: float) -> bool:
    """Whether it is so within that time."""
    deadline = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
