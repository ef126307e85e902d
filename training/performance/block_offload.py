"""Block offloading: weights of blocks in main memory, copied to the device for their own passes, the next block ahead of time.

What a model needs on the device is then what lies outside these blocks, and two of them. It goes together with gradient
checkpointing, under which a block is computed again in the backward pass; without it autograd would hold all that came.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..tensors.method_patch import patched
from .lent import as_at_home, lent, places_of
from .side_stream import Copying, Point, Side, side_of

log = logging.getLogger("lora-atelier")
ALIGNED = 512
"""Bytes at whose multiples a block's tensors begin, as a device's own allocator would have it."""
NOBODY = 0.02
"""Share of the time that is too small to be called waiting."""


def scattered(count: int, share: float) -> list[int]:
    """Which of ``count`` blocks stay away, if ``share`` (0 to 1) of them do: evenly, so that others work while one comes."""
    away = math.ceil(share * count)
    return [(2 * i + 1) * count // (2 * away) for i in range(away)]


def on_device(outside: int, blocks: Sequence[int], away: Iterable[int]) -> int:
    """Bytes that a model's weights take on the device: ``outside`` the blocks, and of the ``blocks`` what is there at most.

    ``away`` are the indices of those that come for their own passes.
    """
    gone = set(away)
    coming = sorted((blocks[i] for i in gone), reverse=True)[:2]
    return outside + sum(blocks) - sum(blocks[i] for i in gone) + sum(coming)


@dataclass(frozen=True)
class TransferPace:
    """What was measured over a step of a run: seconds of the device."""

    transfer: float
    """Copying the weights of blocks that are away."""
    computing: float
    waiting: float
    """For a block that had not come yet."""
    carried: int
    """Bytes that were copied."""

    @property
    def lost(self) -> float:
        """The share of a step in which the device waits."""
        return self.waiting / (self.waiting + self.computing)

    @property
    def is_waited_for(self) -> bool:
        return self.lost >= NOBODY

    @property
    def sentence(self) -> str:
        beside = f"offload_blocks: transfers take {self.transfer / self.computing:.1f} of the time of computing"
        return (
            f"{beside}; a step waits for them {self.lost:.0%} of its time" if self.is_waited_for else f"{beside}, so nobody waits"
        )


@dataclass
class Traffic:
    """The blocks of a model that stay away, and what is known of their transfers; for as long as a run lasts."""

    away: Sequence[int] = ()
    """Indices in the order of the model's blocks."""
    say: Callable[[str], None] = lambda _: None
    """Receives a sentence for the person."""
    pace: TransferPace | None = None
    """None until it has been measured."""
    side: Side | None = None
    """Of the model's device if None."""
    _unlocked: bool = field(default=False, init=False)

    def measured(self, pace: TransferPace) -> None:
        self.pace = pace
        self.say(pace.sentence)

    def could_not_lock(self) -> None:
        if not self._unlocked:
            self._unlocked = True
            self.say(
                "offload_blocks: main memory could not be page-locked for all blocks that stay there, so the device waits while "
                "they come. Close what else uses main memory, or lower offload_blocks."
            )


@contextmanager
def kept_away(
    blocks: Sequence[nn.Module], modules: Iterable[nn.Module], device: torch.device, traffic: Traffic
) -> Iterator[None]:
    """While it lasts, all weights of ``modules`` are on ``device`` but those of ``blocks``, which come when they are used.

    Modules have copies meanwhile and get their own tensors back; those are only read, and their pages locked meanwhile.
    """
    side = traffic.side or side_of(device)
    inside = {module for block in blocks for module in block.modules()}
    rest = [module for module in modules if module not in inside]
    elsewhere = [place for place in places_of(rest) if place[2].device != device]  # what the host has left in main memory
    carrier = _Carrier(side, traffic, blocks)
    with torch.no_grad():
        copies = [as_at_home(place[2], place[2].detach().to(device)) for place in elsewhere]
    with lent(elsewhere, copies), _locked(carrier.homes(), side, traffic), patched(blocks, "forward", carrier.around):
        del copies
        try:
            yield
        finally:
            carrier.end()


class _Coming:
    """A block's weights on their way to the device, or there."""

    def __init__(self, block: nn.Module, tensors: list[Tensor], copying: Copying, nbytes: int):
        self.block, self.tensors, self.copying, self.nbytes = block, tensors, copying, nbytes


class _Carrier:
    """Brings one block's weights for its pass and those of the block that will come next, as it did the last time."""

    def __init__(self, side: Side, traffic: Traffic, blocks: Sequence[nn.Module]):
        self._side = side
        self._homes = {block: places_of(block.modules()) for block in blocks}
        self._order = _Order(len(blocks))
        self._coming: _Coming | None = None
        self._clock = _Clock(side, traffic, 2 * len(blocks))

    def homes(self) -> list[Tensor]:
        """All that stays away."""
        return [tensor for places in self._homes.values() for _, _, tensor in places]

    def around(self, block: nn.Module, forward: Callable[..., object]) -> Callable[..., object]:
        places = self._homes[block]

        def run(*args: object, **kwargs: object) -> object:
            here = self._take(block)
            with lent(places, here):
                del here  # what autograd does not keep is gone when the block is done
                return forward(*args, **kwargs)

        return run

    def end(self) -> None:
        """What is on its way is let go once it has come: its memory is the main stream's."""
        coming, self._coming = self._coming, None
        if coming is not None:
            self._side.wait(coming.copying)
            if coming.copying.done is not None:  # whose source is unlocked or gone next
                coming.copying.done.synchronize()

    def _take(self, block: nn.Module) -> list[Tensor]:
        coming, self._coming = self._coming, None
        if coming is not None and coming.block is not block:
            self._side.wait(coming.copying)
            coming = None
        if coming is None:
            coming = self._begin(block)
        with self._clock.waiting(coming):
            self._side.wait(coming.copying)
        follower = self._order.after(block)
        if follower is block:
            self._coming = coming
        elif follower is not None:
            self._coming = self._begin(follower)
        return coming.tensors

    @torch.no_grad()
    def _begin(self, block: nn.Module) -> _Coming:
        """The copies of a block's weights, in one piece of memory but for those that pack their numbers in a way of their own."""
        homes = [tensor.detach() for _, _, tensor in self._homes[block]]
        away = [not self._side.holds(tensor) for tensor in homes]
        plain = [tensor for tensor, gone in zip(homes, away, strict=True) if gone and _is_plain(tensor)]
        ends = [0]
        for tensor in plain:
            ends.append(ends[-1] + math.ceil(tensor.nbytes / ALIGNED) * ALIGNED)
        room = self._side.empty(ends[-1])
        targets = [_laid(room, start, tensor) for start, tensor in zip(ends, plain, strict=False)]
        packed = [tensor for tensor, gone in zip(homes, away, strict=True) if gone and not _is_plain(tensor)]
        copying = self._side.begin(list(zip(targets, plain, strict=True)), packed, timed=self._clock.runs)
        copied, brought = iter(targets), iter(copying.brought)
        tensors = [
            as_at_home(place[2], next(copied if _is_plain(home) else brought)) if gone else place[2]
            for place, home, gone in zip(self._homes[block], homes, away, strict=True)
        ]
        return _Coming(block, tensors, copying, sum(tensor.nbytes for tensor in (*plain, *packed)))


class _Order:
    """Which block comes after which, learnt from the passes so far.

    One pass goes forward, its gradient back, and a pass without a gradient forward only; so what follows on a block is told by
    those before it, as many as have to be known.
    """

    def __init__(self, blocks: int):
        self._lengths = (blocks + 1, 2)
        self._passed: tuple[nn.Module, ...] = ()
        self._followers: dict[tuple[nn.Module, ...], nn.Module] = {}

    def after(self, block: nn.Module) -> nn.Module | None:
        """What is expected to follow on ``block``, which has its turn now."""
        for length in self._lengths:
            if self._passed:
                self._followers[self._passed[-length:]] = block
        self._passed = (*self._passed, block)[-max(self._lengths) :]
        found = (self._followers.get(self._passed[-length:]) for length in self._lengths)
        return next((follower for follower in found if follower is not None), None)


class _Clock:
    """Times what blocks' transfers take beside computing, over one step, once the first has shown in which order they come."""

    def __init__(self, side: Side, traffic: Traffic, step: int):
        self._side, self._traffic, self._step = side, traffic, step
        self._turn = 0
        # Points in time alone: a copy that is noted here would stay on the device.
        self._turns: list[tuple[Point, Point, tuple[Point | None, Point | None], int]] = []
        self._over = traffic.pace is not None

    @property
    def runs(self) -> bool:
        return not self._over

    @contextmanager
    def waiting(self, coming: _Coming) -> Iterator[None]:
        """Around what lets the device wait for a block."""
        self._turn += 1
        timed = self.runs and self._step < self._turn <= 2 * self._step
        before = self._side.mark() if timed else None
        yield
        after = self._side.mark() if timed else None
        if before is not None and after is not None:
            self._turns.append((before, after, (coming.copying.started, coming.copying.done), coming.nbytes))
        elif self.runs and self._turn > 2 * self._step and (not self._turns or self._turns[-1][1].query()):
            self._tell()

    def _tell(self) -> None:
        turns, self._turns, self._over = self._turns, [], True
        computing = sum(one[1].elapsed_time(other[0]) for one, other in pairwise(turns)) / 1e3
        waiting = sum(before.elapsed_time(after) for before, after, _, _ in turns[1:]) / 1e3
        came = {id(end): (start, end, size) for _, _, (start, end), size in turns[1:]}
        took = [(start.elapsed_time(end), size) for start, end, size in came.values() if start is not None and end is not None]
        if computing > 0:
            self._traffic.measured(TransferPace(sum(t for t, _ in took) / 1e3, computing, waiting, sum(size for _, size in took)))


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_quantized


def _laid(room: Tensor, start: int, like: Tensor) -> Tensor:
    """A tensor like that in ``room`` from the byte ``start`` on, also in the order of its numbers."""
    order = torch.empty_like(like, device="meta")
    return room[start : start + order.nbytes].view(like.dtype).as_strided(order.shape, order.stride())


@contextmanager
def _locked(homes: Iterable[Tensor], side: Side, traffic: Traffic) -> Iterator[None]:
    """Locks the pages of ``homes`` for now, but for those that are locked already, so that copies wait for nobody."""
    locked: list[Tensor] = []
    try:
        for tensor in (part for home in homes for part in _parts(home)):
            done = side.lock(tensor)
            if done:
                locked.append(tensor)
            elif done is not None:
                traffic.could_not_lock()
                break
        yield
    finally:
        for tensor in reversed(locked):
            side.unlock(tensor)


def _parts(tensor: Tensor) -> list[Tensor]:
    """What ``tensor`` consists of in memory: itself, or what a packed one is made of."""
    if type(tensor) in (Tensor, nn.Parameter):
        return [tensor] if tensor.is_contiguous() else []
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [part for name in flatten()[0] for part in _parts(getattr(tensor, name))] if flatten is not None else []
