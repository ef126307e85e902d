"""A GPU without a GPU: torch's device ``cuda`` with main memory behind it, on a build of torch for the CPU.

``backend.cpp`` is the device: its tensors are ordinary ones with real storages on ``cuda:0``, every operation is computed by the
CPU's kernel, tensors of two devices are refused as on a GPU, moves are moves, backward passes run in the device's own thread, and
memory has a limit. Numbers are exact, so results can be compared with those of the CPU. Fake tensors will not do: their backward
pass needs a device that a CPU build does not have, they have no numbers for samplers to read, and being of a class of their own
they miss every way that is for plain tensors.

What no pretence can show: the GPU's own kernels and their rounding, streams that run beside each other, and speed.

``install`` must run before torch is imported, since the library stands before one of torch's own functions. As a program this
file builds the library, or says why it cannot.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("backend.cpp")
CACHE = Path(__file__).resolve().parents[2] / ".studio" / "pretend-gpu"
TOTAL = 8 * 2**30
COUNTS = ("launches", "waits", "bytes_in", "bytes_out", "in_use", "most")
HEADERS = "a C++ compiler (g++) and torch's headers are needed to pretend a GPU"


class CannotPretend(RuntimeError):
    """This machine lacks what the device is built with."""


def compile_backend() -> Path:
    """The library, built for the torch that is installed; kept until that or the source changes."""
    spec = importlib.util.find_spec("torch")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if spec is None or spec.origin is None or compiler is None:
        raise CannotPretend(HEADERS)
    torch = Path(spec.origin).parent
    version = (torch / "version.py").read_bytes()
    target = CACHE / f"{hashlib.sha256(SOURCE.read_bytes() + version + str(torch).encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    include, library = torch / "include", torch / "lib"
    line = [
        compiler, "-O1", "-shared", "-fPIC", "-std=c++20", f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", str(SOURCE),
        "-o", str(partial), f"-L{library}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{library}",
    ]  # fmt: skip
    built = subprocess.run(line, capture_output=True, text=True)
    if built.returncode != 0:
        raise CannotPretend(f"{HEADERS}:\n{built.stderr[-2000:]}")
    partial.replace(target)
    return target


class Device:
    """What the pretended GPU has counted, and its limit."""

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        for name in COUNTS:
            getattr(library, f"get_{name}").restype = ctypes.c_int64
        library.set_limit.argtypes = [ctypes.c_int64]
        self._limit = TOTAL
        library.set_limit(TOTAL)

    def __getattr__(self, name: str) -> int:
        """``launches``, ``waits`` (operations that make the computer wait for numbers), ``bytes_in``, ``bytes_out``, ``in_use``
        and ``most`` (bytes)."""
        if name not in COUNTS:
            raise AttributeError(name)
        return int(getattr(self._library, f"get_{name}")())

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def forget_most(self) -> None:
        self._library.forget_most()

    @property
    def limit(self) -> int:
        """Bytes that there are in all."""
        return self._limit

    @contextmanager
    def limited(self, more: int) -> Iterator[None]:
        """While it lasts, only so many bytes can be had besides those in use."""
        before, self._limit = self._limit, self.in_use + more
        self._library.set_limit(self._limit)
        try:
            yield
        finally:
            self._limit = before
            self._library.set_limit(before)


class Stream:
    """Everything happens in order, so there is nothing to wait for."""

    def __init__(self, device: Any = None, priority: int = 0, **_more: Any):
        self.device, self.priority, self.cuda_stream, self.stream_id = device, priority, 0, 0

    def wait_stream(self, _other: Any) -> None: ...
    def wait_event(self, _event: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_error: Any) -> None: ...


class Event:
    def __init__(self, **_settings: Any): ...
    def record(self, _stream: Any = None) -> None: ...
    def wait(self, _stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 0.0


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: value


def _let_storages_be_copied(torch: Any) -> None:
    """``copy.deepcopy`` of a tensor makes a storage by its constructor, which a build without CUDA refuses."""
    usual = torch.UntypedStorage.clone

    def clone(storage: Any) -> Any:
        if storage.device.type != "cuda":
            return usual(storage)
        view = torch.empty(0, dtype=torch.uint8, device="cuda").set_(storage, 0, (storage.nbytes(),), (1,))
        return view.clone().untyped_storage()

    torch.UntypedStorage.clone = clone


@functools.cache
def install() -> Device:
    """Loads the device, tells torch of it, and returns its counters. CannotPretend where it cannot be built."""
    if "torch" in sys.modules:
        raise CannotPretend("torch is imported already")
    library = ctypes.CDLL(str(compile_backend()), ctypes.RTLD_GLOBAL)
    import torch

    library.start()
    device = Device(library)
    for package in ("torchvision", "torchaudio"):  # they look at torch.version.cuda to find out what they can load
        if importlib.util.find_spec(package):
            __import__(package)
    cuda: Any = torch.cuda
    torch.version.cuda = "13.0"
    properties = SimpleNamespace(
        name="Pretended GPU", major=8, minor=6, total_memory=TOTAL, multi_processor_count=1, gcnArchName="", warp_size=32
    )

    def memory(*_where: Any) -> tuple[int, int]:
        return max(0, device.limit - device.in_use), TOTAL

    def statistics(*_where: Any) -> dict[str, int]:
        used, most = device.in_use, device.most
        return {
            "active_bytes.all.current": used, "reserved_bytes.all.current": used, "allocated_bytes.all.current": used,
            "allocated_bytes.all.peak": most, "reserved_bytes.all.peak": most,
        }  # fmt: skip

    nothing, stream = _always(None), Stream("cuda:0")
    replaced: dict[str, Any] = {
        "_lazy_init": nothing, "init": nothing, "is_initialized": _always(True), "is_available": _always(True),
        "device_count": _always(1), "current_device": _always(0), "set_device": nothing, "synchronize": nothing,
        "get_device_name": _always(properties.name), "get_device_properties": _always(properties),
        "get_device_capability": _always((properties.major, properties.minor)), "is_bf16_supported": _always(True),
        "get_allocator_backend": _always("native"), "mem_get_info": memory, "memory_stats": statistics,
        "memory_allocated": lambda *_: device.in_use, "memory_reserved": lambda *_: device.in_use,
        "max_memory_allocated": lambda *_: device.most, "max_memory_reserved": lambda *_: device.most,
        "reset_peak_memory_stats": lambda *_: device.forget_most(), "empty_cache": nothing, "ipc_collect": nothing,
        "Stream": Stream, "Event": Event, "current_stream": _always(stream), "default_stream": _always(stream),
        "stream": lambda chosen: chosen or Stream(), "set_stream": nothing, "manual_seed": nothing, "manual_seed_all": nothing,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8), "set_rng_state": nothing,
        "_is_in_bad_fork": _always(False),
        "cudart": _always(SimpleNamespace(cudaHostRegister=_always(0), cudaHostUnregister=_always(0))),
    }  # fmt: skip
    for name, value in replaced.items():
        setattr(cuda, name, value)
    if hasattr(torch.accelerator, "empty_host_cache"):
        torch.accelerator.empty_host_cache = nothing
    _let_storages_be_copied(torch)
    if importlib.util.find_spec("comfy_kitchen"):
        import comfy_kitchen

        for name in ("cuda", "triton"):  # kernels for a real one
            comfy_kitchen.disable_backend(name)
    return device


if __name__ == "__main__":
    try:
        compile_backend()
    except CannotPretend as error:
        sys.exit(str(error))
