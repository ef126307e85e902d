"""Recordings: work on a device that runs again as it ran once, on the same tensors, without Python between its operations."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]
import torch

from .. import files


class Recording(Protocol):
    """What a device was seen to do."""

    def replay(self) -> None: ...
    def reset(self) -> None: ...


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
    """A file that is there while something is recorded, so that a process which was ended by it is known of afterwards.

    Torch ends the process where memory cannot be given back, as in a recording that the driver has broken off when memory comes
    from ``cudaMallocAsync``, which ComfyUI asks for by itself. Without the mark every start would end so once more.
    """

    def __init__(self, folder: Path, device: str):
        me = psutil.Process()
        self._folder, self._alike = folder, {"machine": platform.node(), "torch": torch.__version__, "device": device}
        self._me = {"process": me.pid, "since": me.create_time()}

    @property
    def warning(self) -> str:
        """Why nothing should be recorded; empty where nothing is known against it with this torch on this device."""
        for path in sorted(self._folder.glob("recording-*.json")):
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                if self._alike.items() <= found.items() and not _is_alive(found["process"], found["since"]):
                    return f"ComfyUI has ended in the middle of recording something; delete {path} to try it again"
            except (OSError, ValueError, AttributeError, KeyError, TypeError):
                continue
        return ""

    @contextmanager
    def standing(self) -> Iterator[None]:
        """While it lasts the file is there, if it can be written."""
        path = self._folder / f"recording-{uuid.uuid4().hex[:8]}.json"
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps({**self._alike, **self._me}))
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _is_alive(process: int, since: float) -> bool:
    try:
        return bool(psutil.Process(process).create_time() == since)
    except psutil.Error:
        return False


class CudaRecorder:
    """CUDA graphs that share one pool of memory: only one of them works at a time, and nothing of theirs outlives a step."""

    def __init__(self, device: torch.device, marks: Path | None = None):
        self._device = device
        self._mark = None if marks is None else Mark(marks, torch.cuda.get_device_name(device))
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        """The same for all passes aside and all recordings: torch keeps room for each stream's products for good."""

    def _side(self) -> torch.cuda.Stream:
        self._stream = self._stream or torch.cuda.Stream(self._device)
        return self._stream

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
            raise failed[0]
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
        for one in _chain(error):
            traceback.clear_frames(one.__traceback__)
        gc.collect()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and all in whose handling it came."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _trim(device: int) -> None:
    """Memory that graphs had from ``cudaMallocAsync`` goes back to the driver, which keeps it for the next one otherwise."""
    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        driver.cuDeviceGraphMemTrim(ctypes.c_int(device))
