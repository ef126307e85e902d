"""Recordings: work on a device that runs again as it ran once, on the same tensors, without Python between its operations."""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]
import torch

from .. import files
from ..errors import AtelierError, chain_of


class Recording(Protocol):
    """What a device was seen to do."""

    def replay(self) -> None: ...
    def reset(self) -> None: ...


LONG_AGO = 600.0
"""Seconds after which a mark of another machine is taken for one that was left."""
CLOCK_STEP = 2.0
"""Seconds by which two readings of a process's beginning may differ."""


class NotTried(RuntimeError):
    """Why nothing is recorded, in a few words for the person."""


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


def recorder_for(device: torch.device, marks: Path | None = None) -> GraphRecorder | None:
    """The recorder of this device, if it has one; ``marks`` is the folder for what it has to remember if it ends the process."""
    real = torch.version.cuda is not None or torch.version.hip is not None
    return CudaRecorder(device, marks) if device.type == "cuda" and real else None


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


class Mark:
    """Crash marker: a file that is there while something is recorded, so that a process which it has ended is known of.

    Torch ends the process where memory cannot be given back, as in a recording that the driver has broken off when memory comes
    from ``cudaMallocAsync``, which ComfyUI asks for by itself. Without the mark every start would end so once more.
    """

    def __init__(self, folder: Path, device: str):
        me = psutil.Process()
        self._folder, self._alike = folder, {"torch": torch.__version__, "device": device}
        self._me = {"machine": platform.node(), "process": me.pid, "since": me.create_time()}

    @property
    def warning(self) -> str:
        """Why nothing should be recorded; empty where nothing is known against it with this torch on this device."""
        for path in sorted(self._folder.glob("recording-*.json")):
            try:
                if not path.is_file():
                    continue
                age, found = time.time() - path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))
                here = found["machine"] == platform.node()
                # Of a container with another name at each start nobody knows more than how long ago it was.
                gone = not _is_alive(found["process"], found["since"]) if here else age > LONG_AGO
                if gone and self._alike.items() <= found.items():
                    every = path.with_name("recording-*.json")
                    return f"ComfyUI has ended in the middle of recording something; delete {every} to try it again"
            except (OSError, ValueError, AttributeError, KeyError, TypeError):
                continue
        return ""

    @contextmanager
    def standing(self) -> Iterator[None]:
        """While it lasts the file is there, if it can be written."""
        path = self._folder / f"recording-{uuid.uuid4().hex[:8]}.json"
        with suppress(OSError, AtelierError):  # of a full disk
            self._folder.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps({**self._alike, **self._me}))
        remove = partial(_remove, path)
        atexit.register(remove)  # a thread that records is not heard of where a person ends ComfyUI
        try:
            yield
        finally:
            remove()
            atexit.unregister(remove)


def _remove(path: Path) -> None:
    for _ in range(3):  # on Windows not while another one reads it
        try:
            path.unlink(missing_ok=True)
            return
        except OSError:
            time.sleep(0.1)


def _is_alive(process: int, since: float) -> bool:
    try:
        return bool(abs(psutil.Process(process).create_time() - since) < CLOCK_STEP)
    except psutil.Error:
        return False


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The same for all passes aside and all recordings: torch keeps room for each stream's products for good."""
    return torch.cuda.Stream(device)


class CudaRecorder:
    """CUDA graphs that share one pool of memory: only one of them works at a time, and nothing of theirs outlives a step."""

    def __init__(self, device: torch.device, marks: Path | None = None):
        self._device = device
        self._mark = None if marks is None else Mark(marks, torch.cuda.get_device_name(device))
        self._pool: Any = None

    def _side(self) -> torch.cuda.Stream:
        return _side_stream(self._device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On a stream of its own, as torch asks for before a capture."""
        now, side = torch.cuda.current_stream(self._device), self._side()
        side.wait_stream(now)
        try:
            with torch.cuda.stream(side):
                yield
        finally:
            now.wait_stream(side)

    def capture(self, work: Callable[[], None]) -> Recording:
        if self._mark is not None and (warning := self._mark.warning):
            raise NotTried(warning)
        gc.collect()  # nothing may be freed by chance on the way
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # what the passes before have left is not of the pool
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        failed: list[BaseException] = []
        try:
            with (
                nullcontext() if self._mark is None else self._mark.standing(),
                torch.cuda.device(self._device),
                # Other threads of the server may use the device meanwhile.
                torch.cuda.graph(graph, pool=self._pool, stream=self._side(), capture_error_mode="thread_local"),
            ):
                without_leftovers(work, failed)
        except BaseException as error:
            self._recover(now)
            failed.append(error)
        if failed:
            graph.reset()
            raise failed.pop(0)
        return graph

    def _recover(self, now: torch.cuda.Stream) -> None:
        """After a capture that failed, torch may leave its stream and its pool in use."""
        torch.cuda.set_stream(now)
        names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # since torch 2.8, and before
        end = next((found for name in names if (found := getattr(torch._C, name, None)) is not None), None)
        if end is not None:
            with suppress(Exception):
                end(self._device.index or 0, self._pool)
        self._pool = None

    def emptied(self) -> None:
        self._pool = None
        torch.cuda.empty_cache()
        if torch.cuda.get_allocator_backend() == "cudaMallocAsync":
            torch.cuda.synchronize(self._device)
            _trim(self._device.index or 0)


def without_leftovers(work: Callable[[], None], failed: list[BaseException]) -> None:
    """Does ``work``; if it fails, its error is in ``failed``, and what its frames have held is let go of.

    Memory that is asked for within a recording has to be given back within it: from ``cudaMallocAsync`` what is left over belongs
    to a graph that never ran, and the driver does not take it back.
    """
    try:
        work()
    except BaseException as error:  # a cancel too
        failed.append(error)
        for one in chain_of(error):
            traceback.clear_frames(one.__traceback__)
    finally:
        gc.collect()


def _trim(device: int) -> None:
    """Memory that graphs had from ``cudaMallocAsync`` goes back to the driver, which keeps it for the next one otherwise."""
    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        driver.cuDeviceGraphMemTrim(ctypes.c_int(device))
