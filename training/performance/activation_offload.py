"""Activation offloading: what autograd saves for the backward pass leaves the GPU and comes back when it is needed.

Under gradient checkpointing that is the blocks' inputs. Weights stay where they are, as they would not get any less by a copy.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .side_stream import Copying, Side, side_of

SMALLEST = 2**20
"""Bytes; tensors below this size stay on the device."""
LEAVING = 4
"""So many tensors may be on their way out. The memory of the oldest is not given back before its copy is done, and the device
goes on no sooner, or what was to become less would pile up while the computer is ahead of it."""
AHEAD = 2
"""So many tensors are on their way back before they are asked for."""
NOTHING_TO_DO = "offload: the model computes in main memory already, so there is nothing to offload."


def can_offload(device: torch.device) -> bool:
    """Whether ``device`` has a memory of its own."""
    return device.type not in ("cpu", "mps", "meta")


def place(tensor: Tensor) -> int | None:
    """Where the storage of a tensor begins: equal for all its views. None if it has no plain storage (some quantised ones)."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return None
    storage = tensor.untyped_storage()
    # Storages without numbers begin nowhere; each is told by its own object.
    return storage._cdata if tensor.is_meta else storage.data_ptr() or None


def places(tensors: Iterable[Tensor]) -> set[int]:
    """The storages of ``tensors``."""
    return {found for tensor in tensors if (found := place(tensor)) is not None}


class Buffers:
    """Page-locked main memory that is used again, step after step: no more of it than was in use at once."""

    def __init__(self, side: Side):
        self._side = side
        self._free: list[Tensor] = []
        """Longest unused first."""
        self.used = self.held = self._most = 0
        """Bytes in use, and in use or free."""
        self.made = 0
        """How many have been asked of the system so far."""

    def take(self, size: int) -> Tensor:
        """At least ``size`` bytes."""
        fitting = [buffer for buffer in self._free if size <= buffer.nbytes <= 2 * size]
        if fitting:
            # By identity: tensors compare their numbers.
            found = min(fitting, key=len)
            self._free = [buffer for buffer in self._free if buffer is not found]
        else:
            while self._free and self.held + size > max(self._most, self.used + size):
                self.held -= self._free.pop(0).nbytes
            found = self._side.locked(size)
            self.held += found.nbytes
            self.made += 1
        self.used += found.nbytes
        self._most = max(self._most, self.used)
        return found

    def give_back(self, buffer: Tensor) -> None:
        """Copies from it may still be under way: the next ones into it begin after them, on the same side."""
        self.used -= buffer.nbytes
        self._free.append(buffer)


class _Parked:
    """A tensor that was moved to main memory, for as long as autograd may ask for it."""

    def __init__(self, tensor: Tensor, buffers: Buffers):
        # Like it also in the order of its numbers, which compiled code counts on.
        form = torch.empty_like(tensor, device="meta")
        buffer = buffers.take(form.nbytes)
        self.numbers = buffer[: form.nbytes].view(form.dtype).as_strided(form.shape, form.stride())
        self.changed = False
        """Whether the tensor was changed in place while it was leaving."""
        self.asked_for = False
        weakref.finalize(self, buffers.give_back, buffer)


class Offload:
    """Moves what autograd saves to main memory beside the device's computing, and back ahead of its use.

    It outlives the steps, so that they share their buffers; ``on`` is entered for as long as steps are trained.
    """

    def __init__(self, device: torch.device, smallest: int = SMALLEST, side: Side | None = None):
        self._smallest = smallest
        self._side = side or side_of(device)
        self.buffers = Buffers(self._side)
        self._parked: list[weakref.ref[_Parked]] = []
        """In the order in which they left; the backward pass asks for the last ones first."""
        self._leaving: deque[tuple[Tensor, int, _Parked, Copying]] = deque()
        self._lately: deque[tuple[weakref.ref[_Parked], Tensor]] = deque(maxlen=AHEAD)
        """What has come, since layers that saved one input ask for it one after the other."""
        self._coming: list[tuple[weakref.ref[_Parked], Tensor, Copying]] = []
        self._known: dict[tuple[object, ...], weakref.ref[_Parked]] = {}
        """What is leaving, by where and what it is: many layers save one input."""

    @contextmanager
    def on(self, weights: Iterable[Tensor]) -> Iterator[None]:
        """While it lasts, what autograd keeps goes to main memory, all but ``weights``, their views and what is small.

        Gradients are the same but for rounding.
        """
        staying = places(weights)

        def pack(tensor: Tensor) -> _Parked | tuple[Tensor, int]:
            where = place(tensor)
            if where is None or where in staying or tensor.nbytes < self._smallest:
                return tensor, tensor._version
            return self._park(tensor, where)

        def unpack(packed: _Parked | tuple[Tensor, int]) -> Tensor:
            if isinstance(packed, _Parked):
                return self._bring(packed)
            tensor, version = packed
            if tensor._version != version:  # autograd does not look once somebody else keeps its tensors
                raise RuntimeError(CHANGED)
            return tensor

        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                yield
        finally:
            self._settle()

    @torch.no_grad()
    def _park(self, tensor: Tensor, where: int) -> _Parked:
        what = where, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
        known = self._known.get(what)
        parked = known() if known is not None else None
        if parked is not None:
            return parked
        self._lately.clear()
        parked = _Parked(tensor, self.buffers)
        copying = self._side.begin([(parked.numbers, tensor)])
        while self._parked and self._parked[-1]() is None:
            self._parked.pop()
        self._parked.append(weakref.ref(parked))
        self._known[what] = self._parked[-1]
        self._leaving.append((tensor.detach(), tensor._version, parked, copying))
        while len(self._leaving) > LEAVING:
            self._let_go()
        return parked

    def _let_go(self) -> None:
        """Of the device's memory of the tensor that has been leaving longest."""
        tensor, version, parked, copying = self._leaving.popleft()
        self._side.wait(copying)
        parked.changed = parked.changed or tensor._version != version
        # From here on another tensor may lie in its place.
        self._known = {what: ref for what, ref in self._known.items() if ref() is not parked}

    @torch.no_grad()
    def _bring(self, parked: _Parked) -> Tensor:
        """The tensor on the device; those that will be asked for next are on their way then."""
        while self._leaving:
            self._let_go()
        if parked.changed:
            raise RuntimeError(CHANGED)
        lately = next((tensor for ref, tensor in self._lately if ref() is parked), None)
        if lately is not None:
            return lately
        parked.asked_for = True
        tensor, copying = self._taken(parked) or self._begun(parked)
        self._side.wait(copying)
        self._lately.append((weakref.ref(parked), tensor))
        for following in self._next(parked):
            if all(ref() is not following for ref, _, _ in self._coming):
                self._coming.append((weakref.ref(following), *self._begun(following)))
        return tensor

    def _begun(self, parked: _Parked) -> tuple[Tensor, Copying]:
        room = self._side.empty(parked.numbers.nbytes)
        tensor = room.view(parked.numbers.dtype).as_strided(parked.numbers.shape, parked.numbers.stride())
        return tensor, self._side.begin([(tensor, parked.numbers)])

    def _taken(self, parked: _Parked) -> tuple[Tensor, Copying] | None:
        """What is on its way for ``parked``; what nobody can ask for any more is let go."""
        found, staying = None, []
        for ref, tensor, copying in self._coming:
            if ref() is parked:
                found = tensor, copying
            elif ref() is None:
                self._side.wait(copying)
            else:
                staying.append((ref, tensor, copying))
        self._coming = staying
        return found

    def _next(self, parked: _Parked) -> list[_Parked]:
        """Those that left before ``parked``, latest first."""
        found: list[_Parked] = []
        seen = False
        for ref in reversed(self._parked):
            other = ref()
            if seen and other is not None and not other.asked_for:
                found.append(other)
            seen = seen or other is parked
            if len(found) == AHEAD:
                break
        return found

    def _settle(self) -> None:
        """Nothing is on its way any more as far as the main stream's memory goes, be it needed or not."""
        while self._leaving:
            self._let_go()
        for _, _, copying in self._coming:
            self._side.wait(copying)
        self._coming.clear()
        self._lately.clear()
        self._parked.clear()
        self._known.clear()


CHANGED = "a tensor that is needed for the gradient was changed in place"
