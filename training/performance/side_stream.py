"""Copies between main memory and a device beside what the device computes: streams, points in them, and page-locked memory.

``Side`` is all that offloading asks of a device. A GPU has it from its library; elsewhere everything is done in order. What is
allocated here belongs to the main stream, so that memory goes round as everywhere else: a copy begins after all that the main
stream has been given so far, and whoever uses or drops what was copied lets the main stream wait for the copy first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger("lora-atelier")
REGISTER = 1
"""``cudaHostRegisterPortable``."""


class Point(Protocol):
    """A point in a stream."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: Any) -> float: ...


@dataclass(frozen=True)
class Copying:
    """Copies that were begun together."""

    started: Point | None = None
    done: Point | None = None
    """None where they are done already."""
    brought: list[Tensor] = field(default_factory=list)
    """What was to be brought in a new tensor."""


class Side(Protocol):
    """What copies beside a device's main stream."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether it lies on the device."""

    def begin(self, copies: Sequence[tuple[Tensor, Tensor]], packed: Sequence[Tensor] = (), timed: bool = False) -> Copying:
        """Copies (target, source), after all that the main stream has been given; and ``packed`` to the device, each anew."""

    def wait(self, copying: Copying) -> None:
        """What the main stream is given from now on comes after these copies; nobody else waits."""

    def mark(self) -> Point | None:
        """Where the main stream is; None where there are no times to be told."""

    def empty(self, size: int) -> Tensor:
        """So many bytes on the device."""

    def locked(self, size: int) -> Tensor:
        """So many bytes of main memory, page-locked where that makes copies faster and is possible."""

    def lock(self, tensor: Tensor) -> bool | None:
        """Locks the pages of a tensor in main memory where it lies. None if there is nothing to do, False if it cannot be."""

    def unlock(self, tensor: Tensor) -> None:
        """Undoes that."""


def side_of(device: torch.device) -> Side:
    return Streams(device) if device.type in ("cuda", "xpu") else InOrder(device)


class InOrder:
    """A device that does one thing after another."""

    def __init__(self, device: torch.device):
        self._device = device

    def begin(self, copies: Sequence[tuple[Tensor, Tensor]], packed: Sequence[Tensor] = (), timed: bool = False) -> Copying:
        for target, source in copies:
            target.copy_(source)
        return Copying(brought=[tensor.to(self._device) for tensor in packed])

    def holds(self, tensor: Tensor) -> bool:
        return tensor.device == self._device

    def wait(self, copying: Copying) -> None:
        return

    def mark(self) -> Point | None:
        return None

    def empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def locked(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def lock(self, tensor: Tensor) -> bool | None:
        return None

    def unlock(self, tensor: Tensor) -> None:
        return


class Streams(InOrder):
    """A GPU, with a stream of its own for the copies."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._library: Any = torch.get_device_module(device)
        self._stream = self._library.Stream(device)
        self._lockable = True

    def begin(self, copies: Sequence[tuple[Tensor, Tensor]], packed: Sequence[Tensor] = (), timed: bool = False) -> Copying:
        self._stream.wait_stream(self._library.current_stream(self._device))
        try:
            with self._library.stream(self._stream):
                started = self._stream.record_event(self._library.Event(enable_timing=True)) if timed else None
                for target, source in copies:
                    target.copy_(source, non_blocking=True)
                # These take the side's own memory, which is sound as each copy begins after the last use of what it may get.
                brought = [tensor.to(self._device, non_blocking=True) for tensor in packed]
                done = self._stream.record_event(self._library.Event(enable_timing=timed))
        except BaseException:
            # Whoever gets the memory of ``copies`` next must not write there while some of them are still on their way.
            self._library.current_stream(self._device).wait_stream(self._stream)
            raise
        return Copying(started, done, brought)

    def wait(self, copying: Copying) -> None:
        self._library.current_stream(self._device).wait_event(copying.done)

    def mark(self) -> Point | None:
        point: Point = self._library.current_stream(self._device).record_event(self._library.Event(enable_timing=True))
        return point

    def locked(self, size: int) -> Tensor:
        if self._lockable:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:  # there is no more that can be locked; copies then wait
                log.warning("main memory could not be locked for copies (%s); they are slower without", error)
                self._lockable = False
        return super().locked(size)

    def lock(self, tensor: Tensor) -> bool | None:
        if self._device.type != "cuda" or tensor.device.type != "cpu" or not tensor.nbytes or tensor.is_pinned():
            return None
        if int(self._library.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, REGISTER)) == 0:
            return True
        self._forget_error()
        return False

    def unlock(self, tensor: Tensor) -> None:
        if int(self._library.cudart().cudaHostUnregister(tensor.data_ptr())) != 0:
            self._forget_error()

    def _forget_error(self) -> None:
        """The library reports a refusal a second time, at the next operation, whoever asks for that."""
        try:
            torch.zeros(1, device=self._device).add_(1)
            self._library.synchronize()
        except RuntimeError as error:
            log.info("the device's library said: %s", error)
