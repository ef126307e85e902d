"""Pictures to latents and captions to text encodings, once, on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from .dataset.cache import TensorCache, cache_key
from .dataset.plan import Batch, Plan
from .dataset.prepare import View, view
from .dataset.samples import Dataset, Sample

RANDOM_CROPS = 4
"""Cached variants of every picture whose crop is random; each epoch takes the next."""
IN_MEMORY = 2 * 2**30
"""Bytes of latents that are kept in memory; the rest is read from the cache when its turn comes."""
Advance = Callable[..., None]


class Pictures(Protocol):
    """What turns pixels into latents (the host's VAE)."""

    def encode(self, pixels: Tensor) -> Tensor: ...
    def identity(self) -> str: ...


class Texts(Protocol):
    """What turns captions into conditioning (the host's CLIP)."""

    def encode(self, text: str) -> dict[str, Tensor]: ...
    def identity(self) -> str: ...


class Encoded:
    """The latents and texts of a dataset, ready for the loop."""

    def __init__(self, dataset: Dataset, seed: int, pictures: Pictures, texts: Texts, cache: TensorCache):
        self.dataset, self.seed = dataset, seed
        self._pictures, self._texts, self._cache = pictures, texts, cache
        self._picture_identity, self._text_identity = pictures.identity(), texts.identity()
        self._latents: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0
        self._conditionings: dict[str, dict[str, Tensor]] = {}

    def prepare(self, plan: Plan, epochs: int, advance: Advance) -> None:
        """Encodes whatever the cache lacks; ``advance(done, preview)`` is called after every picture and may raise to cancel.

        What is encoded already stays in the cache, so a cancelled preparation goes on where it stopped.
        """
        for done, (sample, shown) in enumerate(self._views(plan, epochs), 1):
            if self._find_latent(shown) is None:
                self._encode_picture(sample, shown)
            advance(done)
        for sample in self.dataset.samples:
            self.text(sample.caption or "")
        self.text("")

    def count(self, plan: Plan, epochs: int) -> int:
        """How often ``prepare`` will advance."""
        return sum(1 for _ in self._views(plan, epochs))

    def latents(self, batch: Batch, epoch: int) -> tuple[Tensor, list[View]]:
        """(B, C, H, W) as the VAE gave them, and how each picture was cut."""
        subset = self.dataset.subsets[batch.subset]
        out, views = [], []
        for index in batch.samples:
            sample = subset.samples[index]
            shown = view(sample, subset.config, batch.size, self.seed, epoch % RANDOM_CROPS)
            latent = self._find_latent(shown)
            out.append(self._encode_picture(sample, shown) if latent is None else latent)
            views.append(shown)
        return torch.stack(out), views

    def text(self, caption: str) -> dict[str, Tensor]:
        """The conditioning of a caption, encoded once."""
        if caption not in self._conditionings:
            key = cache_key("text", self._text_identity, caption)
            found = self._cache.get(key)
            if found is None:
                found = self._texts.encode(caption)
                self._cache.put(key, found)
            self._conditionings[caption] = found
        return self._conditionings[caption]

    def _views(self, plan: Plan, epochs: int) -> Iterator[tuple[Sample, View]]:
        """Every picture in every way it will be shown, bucket by bucket."""
        seen = set()
        for number, size, members in plan.buckets:
            subset = self.dataset.subsets[number]
            for index in members:
                for variant in range(min(epochs, RANDOM_CROPS) if subset.config.crop == "random" else 1):
                    shown = view(subset.samples[index], subset.config, size, self.seed, variant)
                    if shown.parts not in seen:
                        seen.add(shown.parts)
                        yield subset.samples[index], shown

    def _key(self, shown: View) -> str:
        return cache_key("latent", self._picture_identity, shown.parts)

    def _find_latent(self, shown: View) -> Tensor | None:
        key = self._key(shown)
        if key in self._latents:
            return self._latents[key]
        found = self._cache.get(key)
        if found is None:
            return None
        self._remember(key, found["latent"])
        return found["latent"]

    def _encode_picture(self, sample: Sample, shown: View) -> Tensor:
        latent = self._pictures.encode(shown.pixels(sample.path)[None])[0]
        key = self._key(shown)
        self._cache.put(key, {"latent": latent})
        self._remember(key, latent)
        return latent

    def _remember(self, key: str, latent: Tensor) -> None:
        if self._held + latent.nbytes <= IN_MEMORY:
            self._latents[key] = latent
            self._held += latent.nbytes


def size_conditioning(shown: View) -> dict[str, Any]:
    """SDXL's size conditioning in the host's words: original size, crop offset, and target size, in pixels."""
    return {
        "width": shown.original[0], "height": shown.original[1], "crop_w": shown.crop[0], "crop_h": shown.crop[1],
        "target_width": shown.size[0], "target_height": shown.size[1],
    }  # fmt: skip
