"""Which pictures are in which batch: a pure function of (samples, settings, seed, epoch).

A resumed run that asks for step k gets the batch that the interrupted run would have had.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from ..errors import AtelierError
from .buckets import Size, assign, bucket_sizes
from .samples import Dataset, counted


@dataclass(frozen=True)
class Batch:
    """Pictures of one subset and one bucket, shown in one step."""

    subset: int
    """Index into ``Dataset.subsets``."""
    size: Size
    """(width, height) in pixels to which every picture of the batch is brought."""
    samples: tuple[int, ...]
    """Indices into the subset's samples; the last batch of a bucket may be shorter than the batch size."""


@dataclass(frozen=True)
class BucketRow:
    """One line of the bucket table."""

    subset: int
    size: Size
    images: int
    sightings: int
    """Images x repeats: what is shown per epoch."""
    batches: int
    """Steps per epoch, ceil(sightings / batch size)."""


class Plan:
    """The order of batches over all epochs; steps and epochs count from 0."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        if not any(subset.samples for subset in dataset.subsets):
            raise AtelierError("dataset: there is no picture in it; connect a Load Dataset node with a folder of pictures.")
        self.dataset = dataset
        self.seed = seed
        self._last: tuple[int, tuple[Batch, ...]] | None = None

    @cached_property
    def buckets(self) -> tuple[tuple[int, Size, tuple[int, ...]], ...]:
        """(subset, size, indices of its samples), in order of subset and size; empty buckets are not listed."""
        rows = []
        for number, subset in enumerate(self.dataset.subsets):
            config = subset.config
            square = (config.resolution, config.resolution)
            sizes = bucket_sizes(config.resolution, config.bucket_step) if config.buckets else (square,)
            members: dict[Size, list[int]] = {}
            for index, sample in enumerate(subset.samples):
                members.setdefault(assign(sample.width, sample.height, sizes), []).append(index)
            rows += [(number, size, tuple(members[size])) for size in sorted(members)]
        return tuple(rows)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Sum over subsets and buckets of ceil(sightings / batch size)."""
        return sum(row.batches for row in self.bucket_table())

    def epochs_for(self, steps: int) -> int:
        """Epochs that are begun in ``steps`` steps; the last one may be cut short."""
        return -(-steps // self.steps_per_epoch)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, place in the epoch) of an absolute step."""
        if step < 0:
            raise ValueError(f"step {step} is before the start")
        return divmod(step, self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch to which an absolute step belongs."""
        return self.locate(step)[0]

    def batch(self, step: int) -> Batch:
        """The batch of an absolute step."""
        epoch, place = self.locate(step)
        return self.epoch_batches(epoch)[place]

    def epoch_batches(self, epoch: int) -> tuple[Batch, ...]:
        """All batches of an epoch in order.

        The shuffle's seed is ``seed + epoch``. Within a bucket every picture comes once, in a fresh order, before any comes
        again, so that repeats are spread over the epoch; then the batches of all subsets and buckets are mixed.
        """
        if self._last is None or self._last[0] != epoch:
            self._last = (epoch, self._shuffled(epoch))
        return self._last[1]

    def _shuffled(self, epoch: int) -> tuple[Batch, ...]:
        generator = random.Random(self.seed + epoch)
        batches = []
        for number, size, members in self.buckets:
            subset = self.dataset.subsets[number]
            order: list[int] = []
            for _ in range(subset.repeats):
                order += generator.sample(members, len(members))
            width = subset.config.batch_size
            batches += [Batch(number, size, tuple(order[i : i + width])) for i in range(0, len(order), width)]
        generator.shuffle(batches)
        return tuple(batches)

    def bucket_table(self) -> tuple[BucketRow, ...]:
        """One row for every bucket in use."""
        rows = []
        for number, size, members in self.buckets:
            subset = self.dataset.subsets[number]
            sightings = len(members) * subset.repeats
            rows.append(BucketRow(number, size, len(members), sightings, -(-sightings // subset.config.batch_size)))
        return tuple(rows)

    def describe(self) -> str:
        """The bucket table and the steps of an epoch as text."""
        rows = []
        for row in self.bucket_table():
            rest = row.sightings % self.dataset.subsets[row.subset].config.batch_size
            short = f", the last with {rest}" if rest and row.batches > 1 else ""
            name = f"subset {row.subset + 1}, " if len(self.dataset.subsets) > 1 else ""
            size, pictures = f"{row.size[0]} x {row.size[1]}", counted(row.images, "picture")
            rows.append(f"{name}{size}: {pictures}, {counted(row.batches, 'step')}{short}")
        return "\n".join([*rows, f"{counted(self.steps_per_epoch, 'step')} an epoch"])
