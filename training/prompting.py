"""Prompts as CONDITIONING, beside the control pictures that a model which edits is shown for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from . import host
from .dataset.controls import NONE, Controls, whole
from .dataset.samples import Dataset
from .families import Family
from .protocols import CanvasText
from .tensors import references

Control = tuple[Tensor, ...]
"""The control pictures of one prompt: (1, H, W, 3) in 0..1 each."""


def shows_of(family: Family, text: host.TextEncoder, dataset: Dataset) -> Controls:
    """How the control pictures of a dataset are shown to a model of this family, and to the text encoder beside it."""
    if not family.edits or not any(sample.controls for sample in dataset.samples):
        return NONE
    return Controls(True, text.sees, family.edit_method, family.controls_as_large)


def controls_of(dataset: Dataset, most: int) -> list[Control]:
    """Those of the first ``most`` training pictures that have some."""
    training = (subset for subset in dataset.subsets if subset.config.role == "training")
    pairs = (sample.controls for subset in training for sample in subset.samples if sample.controls)
    return [tuple(whole(one).pixels(one.path)[None] for one in controls) for controls in islice(pairs, most)]


def apart(images: Tensor | None) -> list[Control]:
    """An IMAGE (B, H, W, C) as one control picture for each prompt."""
    return [] if images is None else [(one[None, ..., :3],) for one in images]


@dataclass
class Prompter:
    """Reads prompts; number i is beside the control pictures number i, and the last of these beside all that follow."""

    text: host.TextEncoder
    codec: host.PictureCodec
    shows: Controls
    controls: Sequence[Control] = ()
    live: bool = False
    """Whether the text encoder changes, so that nothing it has said is kept."""
    _latents: dict[int, list[Tensor]] = field(default_factory=dict)
    _texts: dict[tuple[str, int], CanvasText] = field(default_factory=dict)

    def __call__(self, prompt: str, number: int) -> CanvasText:
        """CONDITIONING of a prompt, as the host's own nodes make it."""
        place = self._place(number)
        if (prompt, place) in self._texts:
            return self._texts[prompt, place]
        pictures = self.controls[place] if place >= 0 else ()
        found = self.text.for_sampling(prompt, pictures if self.shows.seen else ())
        if latents := self.encoded(number):
            told = {references.NAME: latents, **({references.METHOD: self.shows.method} if self.shows.method else {})}
            found = [[cond, {**extras, **told}] for cond, extras in found]
        if not self.live:
            self._texts[prompt, place] = found
        return found

    def _place(self, number: int) -> int:
        """Which control pictures a prompt is beside; -1 for none."""
        return min(number, len(self.controls) - 1) if self.shows.shown else -1

    def encoded(self, number: int) -> list[Tensor]:
        """The latents of a prompt's control pictures; encoded once."""
        place = self._place(number)
        if place < 0:
            return []
        if place not in self._latents:
            self._latents[place] = [self.codec.encode(pixels) for pixels in self.controls[place]]
        return self._latents[place]
