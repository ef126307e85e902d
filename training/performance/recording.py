"""Recordings: work on a device that runs again as it ran once, on the same tensors, without Python between its operations."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

import torch


class Recording(Protocol):
    """What a device was seen to do."""

    def replay(self) -> None: ...
    def reset(self) -> None: ...


class GraphRecorder(Protocol):
    """A device that can record its work."""

    def aside(self) -> AbstractContextManager[None]:
        """Around the passes before a recording, in which everything is made that is made once."""
        ...

    def capture(self, work: Callable[[], None]) -> Recording:
        """Records ``work``, whose effect nobody counts on."""
        ...

    def emptied(self) -> None:
        """All recordings were reset; their memory goes back."""
        ...


def recorder_for(device: torch.device) -> GraphRecorder | None:
    """The recorder of this device, if it has one."""
    real = torch.version.cuda is not None or torch.version.hip is not None
    return CudaRecorder(device) if device.type == "cuda" and real else None


class EagerRecorder:
    """Records nothing and works anew each time: what surrounds recordings can so be run anywhere."""

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def capture(self, work: Callable[[], None]) -> Recording:
        return _Again(work)

    def emptied(self) -> None:
        pass


class _Again:
    def __init__(self, work: Callable[[], None]):
        self._work = work

    def replay(self) -> None:
        self._work()

    def reset(self) -> None:
        self._work = _nothing


def _nothing() -> None:
    raise RuntimeError("this recording was let go")


class CudaRecorder:
    """CUDA graphs that share one pool of memory: only one of them works at a time, and nothing of theirs outlives a step."""

    def __init__(self, device: torch.device):
        self._device = device
        self._pool: Any = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On a stream of its own, as torch asks for before a capture."""
        now, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(now)
        try:
            with torch.cuda.stream(side):
                yield
        finally:
            now.wait_stream(side)

    def capture(self, work: Callable[[], None]) -> Recording:
        gc.collect()  # nothing may be freed by chance on the way
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # what the passes before have left is not of the pool
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Other threads of the server may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        except BaseException:
            self._recover(now)
            raise
        return graph

    def _recover(self, now: torch.cuda.Stream) -> None:
        """After a capture that failed, torch may leave its stream and its pool in use."""
        torch.cuda.set_stream(now)
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with suppress(Exception):
                end(self._device.index or 0, self._pool)
        self._pool = None

    def emptied(self) -> None:
        self._pool = None
        torch.cuda.empty_cache()
