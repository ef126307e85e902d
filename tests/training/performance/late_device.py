"""A device whose copies come as late as they may, and which sees what a GPU would only show by chance.

Its memory is main memory. A copy of its side stream is made when somebody waits for it and no sooner; until then what it fills
is NaN, so a result that was reckoned too early is none. And as CUDA's own sanitizer does, it keeps account of what each
of the two streams knows of the other: an access that another one need not have come before is a fault, however it went this time.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lora_atelier.training.performance.side_stream import Copying
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOUCHES_NOTHING = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default, torch.ops.aten.detach.default,
                   torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default}  # fmt: skip
WORK = 1.0
"""Milliseconds of an operation of the main stream."""


@dataclass
class Region:
    """What was done last to a piece of memory, and by whom; 0 is never."""

    main: int = 0
    side_wrote: int = 0
    side_read: int = 0


@dataclass
class Moment:
    """A point in a stream, in milliseconds."""

    at: float
    number: int = 0

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return

    def elapsed_time(self, end: Moment) -> float:
        return end.at - self.at


@dataclass
class Pending:
    number: int
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Late(TorchDispatchMode):
    """As a context it watches the main stream. ``careful``: copies begin after what the main stream has been given."""

    def __init__(self, real: Mapping[int, Tensor] | None = None, careful: bool = True, bytes_per_ms: float = 100.0):
        super().__init__()
        self.real, self.careful, self.speed = real or {}, careful, bytes_per_ms
        """``real``: what is copied in place of a tensor that begins there."""
        self.faults: list[str] = []
        self.begun: list[list[int]] = []
        """Where the sources of each lot of copies begin."""
        self.in_use = self.most = self.locked_bytes = 0
        self.pinned: set[int] = set()
        self.refuses_to_lock = False
        self._free: dict[int, list[bytearray]] = defaultdict(list)
        self._regions: dict[int, Region] = defaultdict(Region)
        self._pending: list[Pending] = []
        self._main = self._side = self._side_knows = self._main_knows = 0
        self._main_time = self._side_time = 0.0

    # What the main stream does

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func in TOUCHES_NOTHING:
            return out
        self._main += 1
        self._main_time += WORK
        written = {t.untyped_storage().data_ptr() for t in tree_leaves(out) if isinstance(t, Tensor) and not t.is_meta}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._touch(tensor.untyped_storage().data_ptr(), str(func), written)
        return out

    def _touch(self, where: int, name: str, written: set[int]) -> None:
        if where not in self._regions:
            return
        region = self._regions[where]
        if region.side_wrote > self._main_knows:
            self.faults.append(f"{name} reads what has not arrived")
        if where in written and region.side_read > self._main_knows:
            self.faults.append(f"{name} changes what is being copied")
        region.main = self._main

    # What a side does

    def holds(self, tensor: Tensor) -> bool:
        return False

    def begin(self, copies: Sequence[tuple[Tensor, Tensor]], packed: Sequence[Tensor] = (), timed: bool = False) -> Copying:
        with unwatched():
            if self.careful:
                self._side_knows = self._main
            self._side += 1
            lot = Pending(self._side)
            self._pending.append(lot)
            self.begun.append([source.data_ptr() for _, source in copies])
            start = max(self._side_time, self._main_time)
            self._side_time = start + sum(source.nbytes for _, source in copies) / self.speed
            for target, source in copies:
                into, source_at = self._region(target), self._region(source)
                if into.main > self._side_knows:
                    self.faults.append("what the main stream may still use is overwritten")
                into.side_wrote = source_at.side_read = self._side
                lot.copies.append((target, self.real.get(source.data_ptr(), source).clone()))
                if target.is_floating_point():
                    target.fill_(float("nan"))
            pieces = {tensor.untyped_storage().data_ptr(): tensor for pair in copies for tensor in pair}
            for where, tensor in pieces.items():
                if where not in self.pinned:  # what is at home stays there
                    weakref.finalize(tensor.untyped_storage(), self._gone, self._side)
            return Copying(Moment(start) if timed else None, Moment(self._side_time, self._side))

    def _region(self, tensor: Tensor) -> Region:
        return self._regions[tensor.untyped_storage().data_ptr()]

    def _gone(self, number: int) -> None:
        """Memory of a copy was given back."""
        if number > self._main_knows:
            self.faults.append("memory is given back while it is being copied")

    def wait(self, copying: Copying) -> None:
        assert isinstance(copying.done, Moment)
        with unwatched():
            self._main_knows = max(self._main_knows, copying.done.number)
            self._main_time = max(self._main_time, copying.done.at)
            for lot in self._pending:
                if lot.number <= copying.done.number:
                    for target, source in lot.copies:
                        target.copy_(source)
            self._pending = [lot for lot in self._pending if lot.number > copying.done.number]

    def mark(self) -> Moment:
        return Moment(self._main_time)

    def empty(self, size: int) -> Tensor:
        """Memory that was given back is used again at once, as by a device's own allocator."""
        with unwatched():
            room = self._free[size].pop() if self._free[size] else bytearray(max(size, 1))
            tensor = torch.frombuffer(room, dtype=torch.uint8)[:size]
            self.in_use += size
            self.most = max(self.most, self.in_use)
            weakref.finalize(tensor.untyped_storage(), self._given_back, size, room)
            return tensor

    def _given_back(self, size: int, room: bytearray) -> None:
        self.in_use -= size
        self._free[size].append(room)

    def locked(self, size: int) -> Tensor:
        self.locked_bytes += size
        return torch.zeros(size, dtype=torch.uint8)

    def lock(self, tensor: Tensor) -> bool | None:
        if self.refuses_to_lock:
            return False
        assert tensor.data_ptr() not in self.pinned, "locked twice"
        self.pinned.add(tensor.data_ptr())
        return True

    def unlock(self, tensor: Tensor) -> None:
        self.pinned.remove(tensor.data_ptr())


@contextmanager
def unwatched() -> Iterator[None]:
    with torch.utils._python_dispatch._disable_current_modes():
        yield
