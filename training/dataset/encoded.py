"""Encoded dataset: cached latents and text encodings, as batches of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import NotFinite
from ..protocols import CaptionEncoder, EncodedText, PictureEncoder
from ..tensors import references
from ..tensors.finite import first_lost, is_finite
from ..tensors.transfer import to_device
from . import masks, precomputed, stream
from .augment import FIXED, caption_variants, plain_caption, sighted_caption, sighted_ends
from .buckets import Size
from .cache import TensorCache, cache_key
from .controls import NONE, Controls, Shown
from .images import to_unit
from .plan import Batch, Plan, latent_frames
from .samples import Dataset, Sample
from .views import View, view, view_of_before, views
from .workers import Behind

PIXELS_AT_ONCE, PIXELS_ON_CPU = 32 * 1024 * 1024, 256 * 256
"""Pictures of one size go through the VAE together, at most this many pixels, and on a GPU as many as there is memory for: more
would not make it faster, and wait in main memory. A CPU is faster by it only where the pictures are so small that all fits its
caches."""
FILES_BEHIND = 64
"""Cache files that may wait to be written while the encoder goes on."""
IN_MEMORY = 2 * 2**30
"""Bytes of latents, and of text encodings, that are kept in memory; the rest is read from the cache when its turn comes."""
Advance = Callable[..., None]
Tensors = dict[str, Tensor]
Encoded = tuple[Sample, View, Tensors]
"""A picture, how it was shown, and its ``latent`` and, where it has one, ``mask``."""


@dataclass(frozen=True)
class Reading:
    """A text, and the pictures that the text encoder sees beside it."""

    text: str
    seen: tuple[Shown, ...] = ()

    @property
    def parts(self) -> tuple[object, ...]:
        """Equal for what gives the same conditioning."""
        return (self.text, *(one.parts for _, one in self.seen))


@dataclass(frozen=True)
class Work:
    """What a run needs encoded."""

    pictures: tuple[tuple[Sample, View], ...]
    """Every picture in every way it will be shown, each once, bucket by bucket."""
    texts: tuple[Reading, ...]
    """Every caption that will be read, with the pictures beside which it is, each once."""
    in_part: tuple[Reading, ...] = ()
    """The same of an encoder that changes, for those of its towers that don't."""

    def __len__(self) -> int:
        return len(self.pictures) + len(self.texts) + len(self.in_part)

    def share(self, part: Callable[[Sequence[Any]], Sequence[Any]]) -> Work:
        """The part of it that one of several processes does."""
        return Work(tuple(part(self.pictures)), tuple(part(self.texts)), tuple(part(self.in_part)))

    def reading(self, also: Sequence[str], captions: bool = True, in_part: bool = False) -> Work:
        """The same with further texts, which stay also where the pictures' ``captions`` are not read ahead or ``in_part``."""
        texts = self.texts if captions else tuple(one for one in self.texts if one.text in also)
        every = {one.parts: one for one in (*texts, *map(Reading, also))}
        return Work(self.pictures, tuple(every.values()), self.texts if in_part else ())


def work_of(plan: Plan, epochs: int, controls: Controls = NONE, held: Sequence[str] = ()) -> Work:
    """Everything that the steps of so many epochs, and validation, will ask for, but for what is encoded in its step.

    ``held``: texts that are read beside every picture as well.
    """
    pictures: dict[tuple[object, ...], tuple[Sample, View]] = {}
    texts: dict[tuple[object, ...], Reading] = {}

    def needs(sample: Sample, shown: Sequence[View], captions: Sequence[str], cached: bool) -> None:
        for one in shown if cached else ():
            pictures.setdefault((*one.parts, sample.mask_key), (sample, one))
            if sample.before:
                other = view_of_before(one, sample.before)
                pictures.setdefault((*other.parts, ""), (sample.before, other))
        for one in {one.flipped: one for one in shown}.values():
            for control, whole in controls.of(sample, one):
                pictures.setdefault((*whole.parts, ""), (control, whole))
            seen = controls.seen_with(sample, one)
            for text in (*captions, *held):
                reading = Reading(text, seen)
                texts.setdefault(reading.parts, reading)

    for row, (number, size, members) in enumerate(plan.buckets):
        subset, count = plan.dataset.subsets[number], plan.most_sightings(row, epochs)
        ways = max(1, subset.config.variants)
        for sample in (subset.samples[index] for index in members if not subset.ready):
            shown = views(sample, replace(subset.config, variants=ways), size, plan.seed, count)
            captions = caption_variants(sample.caption, subset.config, plan.seed, sample.key, count)
            needs(sample, shown, captions, subset.config.variants > 0)
    for batch in (*plan.validation, *plan.training_share):
        subset = plan.dataset.subsets[batch.subset]
        for sample in (subset.samples[index] for index in batch.samples if not subset.ready):
            fixed = view(sample, subset.config, batch.size, plan.seed, FIXED)
            needs(sample, [fixed], [plain_caption(sample.caption, subset.config)], subset.config.variants > 0)
    empty = Reading("")
    texts.setdefault(empty.parts, empty)
    return Work(tuple(pictures.values()), tuple(texts.values()))


class TowerAnswers:
    """What towers of a text encoder that don't learn have said, in memory and on the disk."""

    def __init__(self, cache: TensorCache, identity: str) -> None:
        self._cache, self._identity, self._held = cache, identity, _Held(IN_MEMORY)

    def get(self, key: str) -> Tensors | None:
        own = self._key(key)
        found = self._held.get(own)
        if found is None and (found := self._cache.get(own)) is not None:
            self._held.keep(own, found)
        return found

    def has(self, key: str) -> bool:
        """Whether ``get`` would give anything; notes that it is needed."""
        own = self._key(key)
        return self._held.get(own) is not None or self._cache.has(own)

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """AtelierError if the disk does not take it; it is held in memory all the same, where there is room."""
        own = self._key(key)
        self._held.keep(own, dict(tensors))
        self._cache.put(own, tensors)

    def _key(self, key: str) -> str:
        return cache_key("tower", self._identity, key)


class EncodedDataset:
    """The latents and texts of a dataset, ready for the loop."""

    def __init__(
        self, dataset: Dataset, seed: int, pictures: PictureEncoder, texts: CaptionEncoder, cache: TensorCache,
        shows: Controls = NONE,
    ):  # fmt: skip
        """``shows``: whether and how control pictures are shown to the model and its text encoder."""
        self.dataset, self.seed, self.shows = dataset, seed, shows
        self._pictures, self._texts, self._cache = pictures, texts, cache
        self.picture_identity, self.text_identity = pictures.identity(), texts.identity()
        self.live: Callable[[str, Sequence[Tensor]], dict[str, Tensor]] | None = None
        """Set while the text encoder is trained: captions are encoded anew in every step, and gradients reach it."""
        self._latents, self._conditionings = _Held(IN_MEMORY), _Held(IN_MEMORY)

    @property
    def folder(self) -> Path:
        """Where the cache lies."""
        return self._cache.folder

    def prepare(self, work: Work, advance: Advance) -> None:
        """Encodes whatever the cache lacks; ``advance(done)`` is called after every picture and text and may raise to cancel.

        What is encoded already stays in the cache, so a cancelled preparation goes on where it stopped.
        """
        missing: list[stream.Shown] = []
        done = 0
        for sample, shown in work.pictures:
            if self._cache.has(self._key(sample, shown)):
                advance(done := done + 1)
            else:
                missing.append((sample, shown))
        with self._writing() as writing, closing(self._encode(missing)) as batches:
            for found in batches:
                for sample, shown, tensors in found:
                    writing.do(partial(self._cache.put, self._key(sample, shown), tensors))
                for _ in found:
                    advance(done := done + 1)
            unread: list[Reading] = []
            for reading in work.texts:
                if self._cache.has(self._text_key(reading)):
                    advance(done := done + 1)
                else:
                    unread.append(reading)
            alone = [reading for reading in unread if not reading.seen]
            for reading, said in zip(alone, self._texts.encode_all([one.text for one in alone]), strict=True):
                check_text(reading.text, said)
                # Not held in memory: how many there are must not count here.
                writing.do(partial(self._cache.put, self._text_key(reading), said))
                advance(done := done + 1)
            for reading in (one for one in unread if one.seen):
                said = self._texts.encode(reading.text, _pixels(reading))
                check_text(reading.text, said)
                writing.do(partial(self._cache.put, self._text_key(reading), said))
                advance(done := done + 1)
        if not work.in_part:
            return
        alone = [reading for reading in work.in_part if not reading.seen]
        for _ in self._texts.read_all_ahead([one.text for one in alone]):
            advance(done := done + 1)
        for reading in (one for one in work.in_part if one.seen):
            self._texts.read_ahead(reading.text, _pixels(reading))
            advance(done := done + 1)

    def latents(self, batch: Batch) -> tuple[Tensor, list[View], Tensor | None]:
        """(B, C, H, W) as the VAE gave them, how each picture was cut, and loss masks (B, 1, h, w) in 0..1 or None."""
        pairs = self._shown(batch)
        shown = [one for _, one in pairs]
        found = self._found(pairs, batch)
        latents = torch.stack([tensors["latent"] for tensors in found])
        if all("mask" not in tensors for tensors in found):
            return latents, shown, None
        everything = torch.ones(1, *latents.shape[-2:])
        return latents, shown, torch.stack([tensors.get("mask", everything) for tensors in found])

    def befores(self, batch: Batch) -> tuple[Tensor, list[View]]:
        """The latents of the pictures at a slider's other end, (B, C, H, W), and how each was cut."""
        pairs = [(s.before, view_of_before(one, s.before)) for s, one in self._shown(batch) if s.before]
        return torch.stack([tensors["latent"] for tensors in self._found(pairs, batch)]), [one for _, one in pairs]

    def _found(self, pairs: Sequence[Shown], batch: Batch) -> list[Tensors]:
        """Latents and masks of a batch's pictures, from the cache or encoded now, as its subset asks for."""
        if self.dataset.subsets[batch.subset].config.variants:
            return [self._picture(sample, one) for sample, one in pairs]
        return [tensors for some in self._encode(list(pairs)) for _, _, tensors in some]

    def ends(self, batch: Batch) -> tuple[list[EncodedText], list[EncodedText]]:
        """Conditionings of the positive and of the negative prompt of a slider, for each sample."""
        subset = self.dataset.subsets[batch.subset]
        assert subset.config.slider is not None
        rows = [
            sighted_ends(subset.config.slider, self.seed, subset.samples[i].key, n)
            for i, n in zip(batch.samples, batch.sightings, strict=True)
        ]
        return self._told([row.positive for row in rows], batch), self._told([row.negative for row in rows], batch)

    def captions(self, batch: Batch) -> list[str]:
        """The caption of each sample, after shuffling and dropout."""
        subset = self.dataset.subsets[batch.subset]
        return [
            sighted_caption(subset.samples[i].caption, subset.config, self.seed, subset.samples[i].key, n)
            for i, n in zip(batch.samples, batch.sightings, strict=True)
        ]

    def conditionings(self, batch: Batch) -> list[EncodedText]:
        """Conditioning of each sample: ``cond``, ``pooled_output`` and extras (tensors, and from other nodes numbers)."""
        subset = self.dataset.subsets[batch.subset]
        if subset.ready:
            return [self.stored_text(subset.samples[i]) for i in batch.samples]
        pairs = self._shown(batch)
        beside = [self.shows.of(sample, one) for sample, one in pairs]
        readings = [
            Reading(caption, self.shows.seen_with(sample, one))
            for caption, (sample, one) in zip(self.captions(batch), pairs, strict=True)
        ]
        if self.live is None:
            texts = [self._read(reading) for reading in readings]
        else:
            fresh: dict[tuple[object, ...], Tensors] = {}
            for reading in readings:
                if reading.parts not in fresh:
                    fresh[reading.parts] = self.live(reading.text, _pixels(reading))
            texts = [fresh[reading.parts] for reading in readings]
        return [self._beside(text, controls) for text, controls in zip(texts, beside, strict=True)]

    def held(self, prompt: str, batch: Batch) -> list[EncodedText]:
        """``prompt`` beside the control pictures of each sample: what the model is held to."""
        subset = self.dataset.subsets[batch.subset]
        if subset.ready:
            text = self.text(prompt)
            return [{**text, **references.beside(self.stored_text(subset.samples[i]))} for i in batch.samples]
        return self._told([prompt] * len(batch.samples), batch)

    def _told(self, prompts: Sequence[str], batch: Batch) -> list[EncodedText]:
        """A prompt beside the control pictures of each sample, as the text encoder reads it without any training."""
        return [
            self._beside(self._read(Reading(prompt, self.shows.seen_with(sample, one))), self.shows.of(sample, one))
            for prompt, (sample, one) in zip(prompts, self._shown(batch), strict=True)
        ]

    def _shown(self, batch: Batch) -> list[tuple[Sample, View]]:
        """Each sample of a batch, and how it is shown."""
        subset = self.dataset.subsets[batch.subset]
        pairs = [(subset.samples[i], n) for i, n in zip(batch.samples, batch.sightings, strict=True)]
        return [(sample, view(sample, subset.config, batch.size, self.seed, n)) for sample, n in pairs]

    def pixels(self, batch: Batch, place: int) -> int:
        """Of a batch's picture, and of what the model is given beside it."""
        subset = self.dataset.subsets[batch.subset]
        own = batch.size[0] * batch.size[1] * latent_frames(batch.frames)
        if subset.ready or not self.shows.shown:
            return own
        return own + self.shows.pixels(*self._shown(batch)[place])

    def _beside(self, text: Tensors, controls: Sequence[Shown]) -> EncodedText:
        """A conditioning with the latents of control pictures."""
        if not controls:
            return text
        latents = [self._picture(control, whole)["latent"][None] for control, whole in controls]
        told = {references.METHOD: self.shows.method} if self.shows.method else {}
        return {**text, **references.numbered(latents), **told}

    def stored_text(self, sample: Sample) -> EncodedText:
        """The conditioning that another node has made for a picture."""
        assert sample.ready is not None
        return precomputed.unpacked(self._stored(sample.ready.text, self._conditionings))

    def text(self, caption: str) -> Tensors:
        """The conditioning of a caption, encoded once."""
        return self._read(Reading(caption))

    def _read(self, reading: Reading) -> Tensors:
        key = self._text_key(reading)
        found = self._conditionings.get(key) or self._cache.get(key)
        if found is None:
            found = self._texts.encode(reading.text, _pixels(reading)) if reading.seen else self._texts.encode(reading.text)
            check_text(reading.text, found)
            self._cache.put(key, found)
        return self._conditionings.keep(key, found)

    def _text_key(self, reading: Reading) -> str:
        text, *seen = reading.parts
        eyes = (self._texts.eyes, *seen) if seen else ()
        return cache_key("text", self.text_identity, text, *self._texts.reading_of(reading.text), *eyes)

    def _key(self, sample: Sample, shown: View) -> str:
        masked = (sample.mask_key, "alpha" if sample.mask == sample.path else "file") if sample.mask else ()
        return cache_key("latent", self.picture_identity, shown.parts, *masked)

    def _picture(self, sample: Sample, shown: View) -> Tensors:
        """Latent and mask of a picture; encoded anew if the cache has lost it meanwhile."""
        if sample.ready:
            return self._stored(sample.ready.latent, self._latents)
        key = self._key(sample, shown)
        found = self._latents.get(key) or self._cache.get(key)
        if found is None:
            ((_, _, found),) = next(self._encode([(sample, shown)]))
            self._cache.put(key, found)
        return self._latents.keep(key, found)

    def _stored(self, key: str, held: _Held) -> Tensors:
        """What only the node that stored it can make again."""
        found = held.get(key) or self._cache.get(key)
        if found is None:
            raise precomputed.lost()
        return held.keep(key, found)

    @property
    def _on_cpu(self) -> bool:
        """Whether the encoders share the cores with whatever else is done meanwhile.

        Then nothing is done beside them: on two cores the whole was no faster with pictures decoded ahead and files written
        behind (``benchmarks/README.md``), and tensors in a second thread give OpenMP a second team of threads.
        """
        return self._pictures.device.type == "cpu"

    def _writing(self) -> Behind:
        return Behind(not self._on_cpu, FILES_BEHIND)

    def _at_once(self, size: Size) -> int:
        most = (PIXELS_ON_CPU if self._on_cpu else PIXELS_AT_ONCE) // (size[0] * size[1])
        return max(1, most if self._on_cpu or most <= 1 else min(most, self._pictures.at_once(*size)))

    def _encode(self, pictures: Sequence[stream.Shown]) -> Generator[list[Encoded], None, None]:
        """Latent and mask of every picture, batch by batch."""
        pinned = self._pictures.device.type == "cuda"
        coming = stream.batches(pictures, self._at_once, ahead=not self._on_cpu and len(pictures) > 1, pinned=pinned)
        with closing(coming):
            for batch in coming:
                yield self._encoded(batch)

    def _encoded(self, batch: stream.PixelBatch) -> list[Encoded]:
        pixels = to_unit(to_device(batch.levels, self._pictures.device))
        if pixels.ndim == 5:
            latents = torch.cat([self._pictures.encode_film(film) for film in pixels])
        else:
            latents = self._pictures.encode(pixels)
        if len(latents) != len(pixels):
            # A video VAE takes several pictures for one film.
            latents = torch.cat([self._pictures.encode(one[None]) for one in pixels])
        out = []
        for (sample, shown), latent, mask in zip(batch.shown, latents, batch.masks, strict=True):
            check_latent(sample, latent)
            tensors = {"latent": latent}
            if mask is not None:
                tensors["mask"] = masks.to_latent_size(to_unit(mask), (latent.shape[-2], latent.shape[-1]))
            out.append((sample, shown, tensors))
        return out


def _pixels(reading: Reading) -> list[Tensor]:
    """What is seen beside a text: (1, H, W, 3) in 0..1 each."""
    return [whole.pixels(control.path)[None] for control, whole in reading.seen]


class _Held:
    """Tensors in memory, as many as fit."""

    def __init__(self, limit: int):
        self._limit, self._bytes = limit, 0
        self._tensors: dict[str, Tensors] = {}

    def get(self, key: str) -> Tensors | None:
        return self._tensors.get(key)

    def keep(self, key: str, tensors: Tensors) -> Tensors:
        """``tensors``, held if there is room."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if key not in self._tensors and self._bytes + size <= self._limit:
            self._tensors[key] = tensors
            self._bytes += size
        return tensors


def check_latent(sample: Sample, latent: Tensor) -> None:
    """NotFinite naming the picture and the wire where the VAE has given what is no number."""
    if not is_finite(latent):
        raise NotFinite(
            f"vae: it gives NaN or infinite numbers for {sample.path}, so nothing of that was kept. Start ComfyUI with "
            "--fp32-vae or --bf16-vae, or connect another VAE."
        )


def check_text(text: str, found: Tensors) -> None:
    """NotFinite naming the caption and the wire where the text encoder has given what is no number."""
    if first_lost(found) is not None:
        said = text if len(text) <= 80 else f"{text[:79]}…"
        raise NotFinite(
            f"clip: it gives NaN or infinite numbers for the text {said!r}, so nothing of that was kept. Start ComfyUI with "
            "--fp32-text-enc or --bf16-text-enc, or connect another CLIP."
        )


def size_conditioning(shown: View) -> dict[str, float]:
    """SDXL's size conditioning in the host's words: original size, crop offset, and target size, in pixels; of a clip also
    ``frame_rate``, its frames a second, where that is known.
    """
    (width, height), (left, top) = shown.described
    rate = shown.stretch.rate if shown.stretch and shown.frames > 1 else 0.0
    return {
        "width": width, "height": height, "crop_w": left, "crop_h": top,
        "target_width": shown.size[0], "target_height": shown.size[1], **({"frame_rate": rate} if rate else {}),
    }  # fmt: skip
