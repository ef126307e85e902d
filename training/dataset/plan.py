"""Batch plan: which pictures are in which batch, as a pure function of (samples, settings, seed, epoch).

A resumed run that asks for step k gets the batch that the interrupted run would have had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..config import SubsetConfig
from ..errors import AtelierError
from ..seeding import epoch_order, rank
from .augment import FIXED
from .buckets import Size, assign, bucket_sizes, own_bucket
from .holdout import held_out
from .samples import Dataset, Sample, counted

Bucket = tuple[int, Size, tuple[int, ...]]
"""(subset, (width, height) in pixels, indices of its samples)."""
SHARE_ALONE = 8
"""Pictures in the training share when none are held out."""


@dataclass(frozen=True)
class Batch:
    """Pictures of one subset and one bucket, shown in one step."""

    subset: int
    """Index into ``Dataset.subsets``."""
    size: Size
    """(width, height) in pixels to which every picture of the batch is brought."""
    samples: tuple[int, ...]
    """Indices into the subset's samples; the last batch of a bucket may be shorter than the batch size."""
    sightings: tuple[int, ...] = ()
    """For each sample how often its picture was shown before in this run, or ``FIXED`` where nothing is left to chance."""
    frames: int = 1
    """Frames of every clip of the batch; 1 for pictures."""

    @property
    def work(self) -> int:
        """What a model has to do for it, in pixels of pictures: about four frames of a film become one of its latent."""
        return self.size[0] * self.size[1] * latent_frames(self.frames) * len(self.samples)


@dataclass(frozen=True)
class BucketRow:
    """One line of the bucket table."""

    subset: int
    size: Size
    images: int
    sightings: int
    """What is shown per epoch: images x repeats; for regularisation this bucket's part of as many as are trained."""
    batches: int
    """Steps per epoch, ceil(sightings / batch size)."""
    frames: int = 1
    """Frames of its clips; 1 for pictures."""


class Plan:
    """The order of batches over all epochs; steps and epochs count from 0."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        if not any(subset.samples for subset in dataset.subsets):
            raise AtelierError("dataset: there is no picture in it; connect a Load Dataset node with a folder of pictures.")
        self.dataset = dataset
        self.seed = seed
        self._last: tuple[int, tuple[Batch, ...]] | None = None
        if not any(dataset.subsets[number].config.role == "training" for number, _, _ in self.buckets):
            raise AtelierError(
                "dataset: no picture is left for training. Set the role of a Load Dataset node to training, and lower the "
                "validation share; a picture that is held out anywhere is trained nowhere."
            )

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """(subset, size, indices of its samples, of one number of frames) of what is trained, by subset, size and frames; empty
        buckets are not listed."""
        return self._sorted(held=False)

    @cached_property
    def validation(self) -> tuple[Batch, ...]:
        """The batches of the pictures that are held out: always the same, in order of subset and size."""
        return self._fixed(self._sorted(held=True))

    @cached_property
    def training_share(self) -> tuple[Batch, ...]:
        """Some of the pictures that are trained, in batches like ``validation`` and as many as these (8 if there are none).

        Those with the smallest SHA-256 of "share:<key>", whatever the run's seed is.
        """
        trained = [row for row in self.buckets if self.dataset.subsets[row[0]].config.role == "training"]
        places = [(row, index) for row, (_, _, members) in enumerate(trained) for index in members]

        def rank_of(place: tuple[int, int]) -> tuple[bytes, int]:
            key = self.dataset.subsets[trained[place[0]][0]].samples[place[1]].key
            return rank("share", key), place[0]

        held = sum(len(batch.samples) for batch in self.validation)
        kept = set(sorted(places, key=rank_of)[: held or SHARE_ALONE])
        return self._fixed(
            [(number, size, tuple(i for i in members if (row, i) in kept)) for row, (number, size, members) in enumerate(trained)]
        )

    def _fixed(self, buckets: Iterable[Bucket]) -> tuple[Batch, ...]:
        """Batches in which nothing is left to chance."""
        batches = []
        for number, size, members in buckets:
            width = self.dataset.subsets[number].config.batch_size
            parts = [members[i : i + width] for i in range(0, len(members), width)]
            batches += [Batch(number, size, part, (FIXED,) * len(part), self._frames(number, part)) for part in parts]
        return tuple(batches)

    def _frames(self, subset: int, members: Sequence[int]) -> int:
        """Frames of the samples of one bucket, which are equal."""
        return self.dataset.subsets[subset].samples[members[0]].frames

    def _sorted(self, held: bool) -> tuple[Bucket, ...]:
        """The buckets of what is held out, or of the rest."""
        rows = []
        out = held_out(self.dataset)
        for number, subset in enumerate(self.dataset.subsets):
            if held and not (subset.config.role == "validation" or subset.config.validation_share > 0):
                continue
            members: dict[tuple[Size, int], list[int]] = {}
            for index, sample in enumerate(subset.samples):
                if (sample.origin in out) == held:
                    members.setdefault((size_of(sample, subset.config), sample.frames), []).append(index)
            rows += [(number, bucket[0], tuple(members[bucket])) for bucket in sorted(members)]
        return tuple(rows)

    @cached_property
    def quotas(self) -> tuple[int, ...]:
        """Sightings per epoch of each of ``buckets``.

        Training: pictures x repeats. Regularisation, all its subsets taken together: exactly as many as are trained, cycled or
        cut, divided among the buckets in proportion to pictures x repeats (by largest remainder), so that an epoch's steps are
        the same in every epoch.
        """
        weights = [len(members) * self.dataset.subsets[number].repeats for number, _, members in self.buckets]
        prior = [self.dataset.subsets[number].config.role == "regularisation" for number, _, _ in self.buckets]
        total = sum(w for w, p in zip(weights, prior, strict=True) if not p)
        parts = iter(shares(total, [w for w, p in zip(weights, prior, strict=True) if p]))
        return tuple(next(parts) if p else w for w, p in zip(weights, prior, strict=True))

    def most_sightings(self, bucket: int, epochs: int) -> int:
        """How often a picture of ``buckets[bucket]`` is shown at most in so many epochs."""
        return -(-self.quotas[bucket] * epochs // len(self.buckets[bucket][2]))

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

    def largest_batch(self) -> Batch:
        """The batch of the first epoch with the most pixels."""
        return max(self.epoch_batches(0), key=lambda batch: batch.work)

    def _shuffled(self, epoch: int) -> tuple[Batch, ...]:
        generator = epoch_order(self.seed, epoch)
        batches = []
        for (number, size, members), quota in zip(self.buckets, self.quotas, strict=True):
            order: list[tuple[int, int]] = []
            # Whole rounds over the bucket; where the quota cuts one short, the next epoch goes on with the others.
            first = epoch * quota
            while len(order) < quota:
                turn, place = divmod(first + len(order), len(members))
                part = members[place : place + quota - len(order)]
                order += [(index, turn) for index in generator.sample(part, len(part))]
            width = self.dataset.subsets[number].config.batch_size
            for i in range(0, len(order), width):
                indices, turns = zip(*order[i : i + width], strict=True)
                batches.append(Batch(number, size, indices, turns, self._frames(number, members)))
        generator.shuffle(batches)
        return tuple(batches)

    def bucket_table(self) -> tuple[BucketRow, ...]:
        """One row for every bucket in use."""
        rows = []
        for (number, size, members), quota in zip(self.buckets, self.quotas, strict=True):
            batches = -(-quota // self.dataset.subsets[number].config.batch_size)
            rows.append(BucketRow(number, size, len(members), quota, batches, self._frames(number, members)))
        return tuple(rows)

    def describe(self) -> str:
        """The bucket table and the steps of an epoch as text."""
        rows = []
        for row in self.bucket_table():
            rest = row.sightings % self.dataset.subsets[row.subset].config.batch_size
            short = f", the last with {rest}" if rest and row.batches > 1 else ""
            name = f"subset {row.subset + 1}, " if len(self.dataset.subsets) > 1 else ""
            size, pictures = bucket_name(row), counted(row.images, "clip" if row.frames > 1 else "picture")
            prior = self.dataset.subsets[row.subset].config.role == "regularisation"
            role = f" for regularisation, {counted(row.sightings, 'sighting')}" if prior else ""
            rows.append(f"{name}{size}: {pictures}{role}, {counted(row.batches, 'step')}{short}")
        held = sum(len(batch.samples) for batch in self.validation)
        if held:
            rows.append(f"held out for validation: {counted(held, 'picture')}")
        return "\n".join([*rows, f"{counted(self.steps_per_epoch, 'step')} an epoch"])


def bucket_name(row: BucketRow) -> str:
    """ "512 x 768", "512 x 768, 17 frames"."""
    sides = f"{row.size[0]} x {row.size[1]}"
    return f"{sides}, {row.frames} frames" if row.frames > 1 else sides


def latent_frames(frames: int, each: int = 4) -> int:
    """About how many a latent has of a clip of so many: one, and one more for every ``each`` (of Wan and HunyuanVideo 4)."""
    return 1 + (frames + each - 2) // each


def bucket_of(width: int, height: int, config: SubsetConfig) -> Size:
    """The size (width, height) at which a picture of these sides is shown."""
    if not config.buckets:
        return config.fixed_size
    found = assign(width, height, bucket_sizes(config.resolution, config.bucket_step))
    if config.bucket_no_upscale and (found[0] > width or found[1] > height):
        return own_bucket(width, height, config.resolution, config.bucket_step)
    return found


def size_of(sample: Sample, config: SubsetConfig) -> Size:
    """The size (width, height) at which a sample is shown; a latent is a bucket of its own, and a head is square."""
    if config.crop == "head" and sample.head is not None:
        return config.resolution, config.resolution
    return (sample.width, sample.height) if sample.ready else bucket_of(sample.width, sample.height, config)


def shares(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """``total`` divided in proportion to ``weights`` by largest remainder; equal remainders go to the earlier one."""
    if not weights:
        return ()
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    left = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in left[: total - sum(parts)]:
        parts[i] += 1
    return tuple(parts)
