"""What ``pauses`` counts, and the pretended device on which it does; also used by the tests.

The device is main memory under the name ``cpu:0``, which to the host is another device than ``cpu``: so it keeps accounts of what
it loads and puts aside, against a memory of any size, and nothing leaves it. What pages weights in on a real GPU (a CUDA library)
is left out: a dynamic patcher prepares, is put aside and makes its resident twin here as there, and moves no bytes.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from lora_atelier.training import recorder, step
from torch import nn
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cpu", 0)
WHOLE = 60
"""Modules from which on a walk is one over a whole model, not over a block."""
READS = ("item", "tolist", "__bool__", "__float__", "__int__", "cpu")
TORCH_ITSELF = (os.path.join("torch", "optim"), "clip_grad")
SEGMENTS = ("before", "step", "pause", "first sample", "sample", "after")


class _Buffer:
    """For the page-locked memory of a host with dynamic VRAM."""

    def __init__(self, *_: Any):
        self.size = 0

    def truncate(self, *_: Any, **__: Any) -> None:
        pass


@contextmanager
def pretended(memory: int, dynamic: bool = False, reserve: int = 2**20) -> Iterator[None]:
    """A device with ``memory`` bytes, of which the host keeps ``reserve`` free at least; loaders load for it meanwhile.

    ``dynamic``: they make patchers of the kind that pages weights in.
    """
    import comfy.model_management as management
    import comfy.model_patcher as patchers

    real_free, real_is_cpu = management.get_free_memory, management.is_device_cpu

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        if (device or DEVICE) != DEVICE:
            return real_free(device, torch_free_too)
        left = memory - sum(loaded_bytes().values())
        return (left, 0) if torch_free_too else left

    with ExitStack() as stack:

        def let(owner: Any, **values: Any) -> None:
            for name, value in values.items():
                stack.enter_context(patch.object(owner, name, value))

        let(
            management,
            get_free_memory=free,
            is_device_cpu=lambda device: device != DEVICE and real_is_cpu(device),
            get_torch_device=lambda: DEVICE,
            get_total_memory=lambda device=None, torch_total_too=False: (memory, memory) if torch_total_too else memory,
            text_encoder_device=lambda: DEVICE,
            vram_state=management.VRAMState.NORMAL_VRAM,
            lowvram_available=True,
            MIN_WEIGHT_MEMORY_RATIO=0.0,
            minimum_inference_memory=lambda: reserve,
            extra_reserved_memory=lambda: 0,
        )
        if dynamic:
            buffers = importlib.import_module("comfy_aimdo.host_buffer")
            let(buffers, HostBuffer=_Buffer)
            let(patchers.ModelPatcherDynamic, _vbar_get=lambda self, create=False: None)
            let(patchers, CoreModelPatcher=patchers.ModelPatcherDynamic)
            let(management, unet_inital_load_device=lambda parameters, dtype: torch.device("cpu"))  # as with that library
        try:
            yield
        finally:
            with torch.inference_mode():
                management.free_memory(1e30, DEVICE)


def loaded_bytes() -> dict[int, int]:
    """By model: what the host says of each that it has loaded; a model is told by its id."""
    import comfy.model_management as management

    there = [loaded.model for loaded in management.current_loaded_models if loaded.model is not None]
    return {id(patcher.model): int(patcher.loaded_size()) for patcher in there}


class Reads(TorchFunctionMode):
    """Hears of everything that would wait for a device if the tensor lay on one.

    torch's optimizers count their steps in main memory, and clipping gathers norms that are together already: both are left out.
    """

    def __init__(self, tell: Callable[[str], None]):
        super().__init__()
        self._tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        reads = name in READS or (name == "to" and _to_cpu(args[1:], kwargs or {}))
        caller = sys._getframe(1).f_code.co_filename
        if reads and not any(part in caller for part in TORCH_ITSELF):
            self._tell(name)
        return func(*args, **(kwargs or {}))


def _to_cpu(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether it is told to go to main memory by name; the pretended device has the same type, and what is there may stay."""
    return "cpu" in [value for value in (*args, kwargs.get("device")) if isinstance(value, str)]


class Counts:
    """Counts by what the loop is doing: what comes ``before`` its first step, a ``step``, a ``pause`` without a sample, the
    ``first sample`` and later ones (``sample``), and what comes ``after`` the last step.
    """

    def __init__(self) -> None:
        self.found: dict[str, Counter[str]] = {name: Counter() for name in SEGMENTS}
        self.times: Counter[str] = Counter()
        """How many steps, pauses and samples there were."""
        self._open, self._drew = Counter[str](), False
        self._begun = False
        self._sizes: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()

    def add(self, name: str, count: int = 1) -> None:
        self._open[name] += count

    def per(self, segment: str) -> dict[str, float]:
        """The mean of one segment."""
        times = max(1, self.times[segment])
        return {name: round(count / times, 2) for name, count in sorted(self.found[segment].items()) if count}

    def _close(self, segment: str) -> None:
        self.found[segment] += self._open
        self.times[segment] += 1
        self._open, self._drew = Counter(), False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts what runs meanwhile, one training job."""
        import comfy.model_management as management
        import comfy.model_patcher as patchers
        import safetensors.torch as tensors_on_disk
        from lora_atelier.training import host, step_context

        real_step, real_enter, real_sample = step.prepare, recorder.Recorder.enter, host.Model.sample
        real_walk, real_state = nn.Module.named_modules, nn.Module.state_dict
        real_hash = hashlib.sha256

        def prepare(*given: Any) -> Any:
            if self._begun:
                if self._open["snapshots"]:
                    sample = "sample" if self.times["first sample"] else "first sample"
                    self._close(sample if self._drew else "pause")
                else:  # between two steps without a pause
                    self.found["step"] += self._open
                    self._open = Counter()
            else:
                self._close("before")
                self._begun = True
            return real_step(*given)

        def enter(book: Any, *given: Any) -> None:
            real_enter(book, *given)
            self._close("step")

        def sample(model: Any, *given: Any, **named: Any) -> Any:
            self._drew = True
            return real_sample(model, *given, **named)

        def whole(module: nn.Module) -> bool:
            if module not in self._sizes:
                self._sizes[module] = sum(1 for _ in real_walk(module)) >= WHOLE
            return self._sizes[module]

        def walk(module: nn.Module, memo: Any = None, *given: Any, **named: Any) -> Any:
            if memo is None and whole(module):
                self.add("walks over a model")
            return real_walk(module, memo, *given, **named)

        def state(module: nn.Module, *given: Any, **named: Any) -> Any:
            if not given and "destination" not in named and whole(module):
                self.add("walks over a model")
            return real_state(module, *given, **named)

        class Hash:
            def __init__(hashed, data: Any = b"", **named: Any):
                hashed.real = real_hash(usedforsecurity=False)
                hashed.update(data)

            def update(hashed, data: Any) -> None:
                self.add("bytes hashed", len(memoryview(data).cast("B")) if len(data) else 0)
                hashed.real.update(data)

            def __getattr__(hashed, name: str) -> Any:
                return getattr(hashed.real, name)

        def counted(real: Callable[..., Any], name: str) -> Callable[..., Any]:
            def run(*given: Any, **named: Any) -> Any:
                self.add(name)
                return real(*given, **named)

            return run

        def moving(real: Callable[..., Any], name: str) -> Callable[..., Any]:
            def run(*given: Any, **named: Any) -> Any:
                self.add(name)
                before = loaded_bytes()
                found = real(*given, **named)
                after = loaded_bytes()
                changes = [after.get(key, 0) - before.get(key, 0) for key in {*before, *after}]
                gone, come = [-c for c in changes if c < 0], [c for c in changes if c > 0]
                self.add("models put aside, wholly or in part", len(gone))
                self.add("models brought, wholly or in part", len(come))
                self.add("bytes put aside", sum(gone))
                self.add("bytes brought", sum(come))
                return found

            return run

        with ExitStack() as stack:

            def let(owner: Any, **values: Any) -> None:
                for name, value in values.items():
                    stack.enter_context(patch.object(owner, name, value))

            let(step_context, prepare=prepare)
            let(recorder.Recorder, enter=enter)
            let(host.Model, sample=sample)
            let(nn.Module, named_modules=walk, state_dict=state)
            let(hashlib, sha256=Hash)
            let(os, fsync=counted(os.fsync, "files flushed"), replace=counted(os.replace, "files put in place"))
            for name in ("serialize", "serialize_file"):
                let(tensors_on_disk, **{name: counted(getattr(tensors_on_disk, name), "LoRAs and states as bytes")})
            let(
                management,
                load_models_gpu=moving(management.load_models_gpu, "loads asked of the host"),
                get_free_memory=counted(management.get_free_memory, "asks how much memory is free"),
            )
            let(patchers.ModelPatcher, load=counted(patchers.ModelPatcher.load, "models gone through for loading"))
            if hasattr(patchers, "ModelPatcherDynamic"):
                dynamic = patchers.ModelPatcherDynamic
                let(dynamic, load=counted(dynamic.load, "models gone through for loading"))
            let(host.Model, hold=counted(host.Model.hold, "holds"))
            from lora_atelier.training.runs.run import Run

            let(Run, save_state=counted(Run.save_state, "snapshots"))
            stack.enter_context(Reads(lambda _: self.add("numbers and tensors read")))
            yield
        self._close("after")


def strangers() -> int:
    """Bytes on the device of models that the host's list of what is loaded no longer leads to."""
    import comfy.model_management as management
    from comfy.model_base import BaseModel

    gc.collect()
    known = {id(loaded.model.model) for loaded in management.current_loaded_models if loaded.model is not None}
    models: list[Any] = [one for one in gc.get_objects() if type(one).__mro__.count(BaseModel)]
    return sum(one.model_loaded_weight_memory for one in models if id(one) not in known)
