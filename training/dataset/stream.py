"""Pictures on their way to the encoder: batches of one size, read ahead by several threads in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .buckets import Size
from .samples import Sample
from .views import View
from .workers import WORKERS

MEMORY = 2**30
"""Bytes of decoded pictures, as they are in their files, that may wait for the encoder before another batch is begun."""
BYTES_A_PIXEL = 4
Shown = tuple[Sample, View]


@dataclass(frozen=True)
class PixelBatch:
    """Pictures of one size that are encoded together."""

    shown: Sequence[Shown]
    levels: Tensor
    """Uint8 (B, H, W, 3), or (B, T, H, W, 3) of clips, in main memory, pinned where asked for."""
    masks: Sequence[Tensor | None]
    """Uint8 (H, W) of each picture that has a mask."""


def batches(
    pictures: Sequence[Shown], at_once: Callable[[Size], int], ahead: bool, pinned: bool = False
) -> Generator[PixelBatch, None, None]:  # fmt: skip
    """``pictures`` in batches of one size and one number of frames, sizes and pictures in their order.

    ``at_once(size)`` says how many pictures of a size go together, and is asked when a batch is begun; clips go alone. ``ahead``:
    several threads read what comes next while the caller works on a batch, each into its place in it; else nothing is read before
    its turn. However many pictures there are, no more wait than one batch and two a thread. What a file raises is raised in its
    turn. When the iterator is closed no thread is left.
    """
    coming = _plan(pictures, at_once)
    if not ahead:
        for shown in coming:
            begun = _Begun(shown, pinned)
            yield begun.batch([begun.read(i) for i in range(len(shown))])
        return
    waiting: deque[tuple[_Begun, list[Future[Tensor | None]]]] = deque()
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="lora-atelier-pictures")
    following = next(coming, None)
    try:
        while waiting or following is not None:
            found = waiting.popleft() if waiting else None
            # Before the batch is waited for, and worked on by the caller, so that the threads have work meanwhile.
            while following is not None and _has_room([begun.shown for begun, _ in waiting], following):
                begun = _Begun(following, pinned)
                waiting.append((begun, [pool.submit(begun.read, i) for i in range(len(following))]))
                following = next(coming, None)
            if found is not None:
                yield found[0].batch([part.result() for part in found[1]])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _has_room(waiting: Sequence[Sequence[Shown]], following: Sequence[Shown]) -> bool:
    """Whether another batch may be begun beside those that wait."""
    pictures = [sample for shown in waiting for sample, _ in shown]
    if not pictures:
        return True
    pixels = sum(sample.width * sample.height * sample.frames for sample in (*pictures, *(sample for sample, _ in following)))
    return len(pictures) < 2 * WORKERS and pixels * BYTES_A_PIXEL <= MEMORY


def _plan(pictures: Sequence[Shown], at_once: Callable[[Size], int]) -> Iterator[list[Shown]]:
    by_size: dict[tuple[Size, int], list[Shown]] = {}
    for one in pictures:
        by_size.setdefault((one[1].size, one[1].frames), []).append(one)
    for (size, frames), group in by_size.items():
        begin = 0
        while begin < len(group):
            end = begin + (max(1, at_once(size)) if frames == 1 else 1)
            yield group[begin:end]
            begin = end


class _Begun:
    """A batch with a place for every picture."""

    def __init__(self, shown: Sequence[Shown], pinned: bool) -> None:
        width, height = shown[0][1].size
        self.shown = shown
        frames = shown[0][1].frames
        shape = (len(shown), *([frames] if frames > 1 else []), height, width, 3)
        self.levels = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self._places = self.levels.numpy()

    def read(self, number: int) -> Tensor | None:
        """Puts a picture into its place; gives its mask. In any thread: nothing here is an operation of torch's."""
        sample, shown = self.shown[number]
        self._places[number] = shown.levels(sample.path).numpy()
        return shown.mask_levels(sample) if sample.mask else None

    def batch(self, masks: Sequence[Tensor | None]) -> PixelBatch:
        return PixelBatch(self.shown, self.levels, masks)
