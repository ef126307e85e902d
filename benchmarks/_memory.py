"""How much memory this process holds while it trains."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from pathlib import Path

import torch

EVERY = 0.02
"""Seconds between two looks at the process."""


def settle() -> None:
    """Gives freed memory back to the system, which would count for held otherwise."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def held() -> int:
    """Bytes: allocated on the GPU where there is one, else resident in memory (0 where the system doesn't tell)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


class Peak:
    """The most that is held from ``begin`` to ``end``."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Does nothing the second time."""
        if self._thread is not None:
            return
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.bytes

    def _watch(self) -> None:
        while not torch.cuda.is_available() and not self._stop.wait(EVERY):
            self.bytes = max(self.bytes, held())
