"""Recorders of training steps for a CPU, where nothing can be recorded: one that works as a CUDA graph does, and broken ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Operation = tuple[Any, Sequence[Any], dict[str, Any], list[Tensor]]


def tensors_of(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_of(value)
    elif isinstance(values, dict):
        yield from tensors_of(list(values.values()))


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Every operation that reaches the device, with the places of its inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        before = {place(tensor) for tensor in tensors_of([args, kwargs])}
        self.operations.append((func, args, kwargs, [t for t in tensors_of(found) if place(t) not in before]))
        return found


@dataclass(eq=False)
class Taped:
    """Does the operations of a tape once more, from and into the very same places; no Python of the step runs."""

    operations: list[Operation]
    recorder: Recording
    again: Callable[[], None] | None = None

    def replay(self) -> None:
        assert self in self.recorder.alive, "replayed after it was reset"
        self.recorder.replays += 1
        if self.again is not None:
            self.again()
            return
        with torch.no_grad():
            for func, args, kwargs, outputs in self.operations:
                fresh = list(tensors_of(func(*args, **kwargs)))
                for old, new in zip(outputs, fresh[len(fresh) - len(outputs) :], strict=True):
                    old.copy_(new)

    def reset(self) -> None:
        self.recorder.alive.remove(self)


@dataclass
class Recording:
    """Works as a CUDA graph does; ``eager``: or calls the step again, which is quicker in a long run."""

    eager: bool = False
    captures: int = 0
    replays: int = 0
    emptied_times: int = 0
    alive: list[Taped] = field(default_factory=list)

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def capture(self, work: Callable[[], None]) -> Any:
        self.captures += 1
        with Tape() as tape:
            work()
        self.alive.append(Taped([] if self.eager else tape.operations, self, work if self.eager else None))
        return self.alive[-1]

    def emptied(self) -> None:
        assert not self.alive
        self.emptied_times += 1


@dataclass
class Refusing(Recording):
    """Fails at capture, in the way of CUDA: the error is hidden behind that of the capture's end."""

    error: Exception = field(default_factory=lambda: RuntimeError("operation not permitted when stream is capturing"))
    after: int = 0
    """So many captures go well."""

    def capture(self, work: Callable[[], None]) -> Any:
        if self.captures < self.after:
            return super().capture(work)
        self.captures += 1
        try:
            work()
            raise self.error
        except Exception:
            raise RuntimeError("capture_end: the stream is not capturing")  # noqa: B904


@dataclass
class Wrong(Recording):
    """Replays to another gradient, by this share of it."""

    gradient: Tensor | None = None
    share: float = 0.0

    def capture(self, work: Callable[[], None]) -> Any:
        recording = super().capture(work)
        real = recording.replay

        def replay() -> None:
            assert self.gradient is not None
            before = self.gradient.clone()
            real()
            self.gradient.add_((self.gradient - before) * self.share)

        recording.replay = replay
        return recording
