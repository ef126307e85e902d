"""Block offloading: weights of blocks in main memory, copied to the device for their own passes, the next block ahead of time.

What a model needs on the device is then what lies outside these blocks, and two of them. It goes together with gradient
checkpointing, under which a block is computed again in the backward pass; without it autograd would hold all that came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..tensors.method_patch import patched

Place = tuple[dict[str, Any], str, Tensor]
"""A parameter or buffer where a module keeps it: (registry, name, the tensor at home)."""


def scattered(count: int, share: float) -> list[int]:
    """Which of ``count`` blocks stay away, if ``share`` (0 to 1) of them do: evenly, so that others work while one comes."""
    away = math.ceil(share * count)
    return [(2 * i + 1) * count // (2 * away) for i in range(away)]


def on_device(outside: int, blocks: Sequence[int], share: float) -> int:
    """Bytes that a model's weights take on the device: ``outside`` the blocks, and of the ``blocks`` what is there at most."""
    away = scattered(len(blocks), share)
    coming = sorted((blocks[i] for i in away), reverse=True)[:2]
    return outside + sum(blocks) - sum(blocks[i] for i in away) + sum(coming)


@contextmanager
def kept_away(
    blocks: Sequence[nn.Module],
    modules: Iterable[nn.Module],
    device: torch.device,
    carry: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """While it lasts, all weights of ``modules`` are on ``device`` but those of ``blocks``, which come when they are used.

    Modules have copies meanwhile and get their own tensors back; those are only read. ``carry`` makes a copy on the device.
    """
    carrier = _Carrier(device, carry)
    inside = {module for block in blocks for module in block.modules()}
    rest = [module for module in modules if module not in inside]
    elsewhere = [place for place in _places(rest) if place[2].device != device]
    with _lent(elsewhere, carrier.copies(elsewhere)), patched(blocks, "forward", carrier.around):
        yield


class _Carrier:
    """Brings one block's weights for its pass and those of the block that came next the last time."""

    def __init__(self, device: torch.device, carry: Callable[[Tensor], Tensor] | None):
        self._carry = carry or (lambda tensor: tensor.to(device, non_blocking=True))
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._homes: dict[nn.Module, list[Place]] = {}
        self._followers: dict[tuple[nn.Module | None, nn.Module], nn.Module] = {}
        self._passed: tuple[nn.Module | None, nn.Module | None] = (None, None)
        self._coming: tuple[nn.Module, list[Tensor], torch.cuda.Event | None] | None = None

    @torch.no_grad()
    def copies(self, places: Sequence[Place]) -> list[Tensor]:
        """On the device, in the order of its current stream; parameters as parameters."""
        made = [self._carry(tensor.detach()) for _, _, tensor in places]
        pairs = zip(places, made, strict=True)
        return [nn.Parameter(copy, requires_grad=False) if isinstance(p[2], nn.Parameter) else copy for p, copy in pairs]

    def around(self, block: nn.Module, forward: Callable[..., object]) -> Callable[..., object]:
        places = self._homes[block] = _places(block.modules())

        def run(*args: object, **kwargs: object) -> object:
            here = self._take(block, places)
            with _lent(places, here):
                del here  # what autograd does not keep is gone when the block is done
                return forward(*args, **kwargs)

        return run

    def _take(self, block: nn.Module, places: Sequence[Place]) -> list[Tensor]:
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] is block:
            _, here, arrived = coming
            if arrived is not None:
                torch.cuda.current_stream(self._device).wait_event(arrived)
        else:
            del coming
            here = self.copies(places)
        before, last = self._passed
        if last is not None:
            self._followers[before, last] = block
        self._passed = last, block
        follower = self._followers.get((last, block))
        if follower is block:
            self._coming = block, here, None
        elif follower is not None:
            self._coming = follower, *self._ahead(self._homes[follower])
        return here

    def _ahead(self, places: Sequence[Place]) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """(copies, what to wait for before they are used); on a GPU beside what it computes now."""
        if self._side is None:
            return self.copies(places), None
        # The side's memory was last used by work that is already in the queue of the current stream.
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            return self.copies(places), self._side.record_event()


def _places(modules: Iterable[nn.Module]) -> list[Place]:
    registries = (registry for module in modules for registry in (module._parameters, module._buffers))
    return [(registry, name, tensor) for registry in registries for name, tensor in registry.items() if tensor is not None]


@contextmanager
def _lent(places: Sequence[Place], here: Sequence[Tensor]) -> Iterator[None]:
    """The tensors ``here`` in these places, for now."""
    for (registry, name, _), tensor in zip(places, here, strict=True):
        registry[name] = tensor
    del here
    try:
        yield
    finally:
        for registry, name, home in places:
            registry[name] = home
