"""Prompts as CONDITIONING, beside the control pictures that a model which edits is shown for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from . import host
from .dataset.controls import NONE, Controls, filled, nearest, whole_size
from .dataset.images import cut, open_picture, to_picture, to_unit
from .dataset.samples import Dataset, Sample
from .errors import AtelierError
from .families import Family, family_named
from .protocols import CanvasText, EncodedText
from .tensors import references
from .tensors.finite import is_finite

Control = tuple[Tensor, ...]
"""The control pictures of one prompt: (1, H, W, 3) in 0..1 each."""


def shows_of(family: Family, text: host.TextEncoder, there: bool) -> Controls:
    """How control pictures, if any are ``there``, are shown to a model of this family, and to the text encoder beside it."""
    if not family.edits or not there:
        return NONE
    return Controls(True, text.sees, family.edit_method, family.controls_as_large, family.controls_in_shapes)


def controls_of(dataset: Dataset, most: int) -> tuple[tuple[Path, ...], ...]:
    """Files of the control pictures of the first ``most`` training pictures that have some."""
    training = (subset for subset in dataset.subsets if subset.config.role == "training")
    pairs = (sample.controls for subset in training for sample in subset.samples if sample.controls)
    return tuple(tuple(one.path for one in controls) for controls in islice(pairs, most))


def is_pair(sample: Sample) -> bool:
    """Whether a picture has control pictures, as files or as latents beside its conditioning."""
    return bool(sample.controls or (sample.ready and sample.ready.controls))


def ready_pairs(dataset: Dataset, most: int) -> tuple[Sample, ...]:
    """The first ``most`` pictures to train on whose control pictures came as latents beside their conditioning."""
    training = (subset for subset in dataset.subsets if subset.config.role == "training")
    return tuple(islice((s for subset in training for s in subset.samples if s.ready and s.ready.controls), most))


def opened(controls: Sequence[Sequence[Path]]) -> list[Control]:
    """Control pictures from their files, as they are shown in training."""
    return [tuple(_as_shown(open_picture(path)) for path in group) for group in controls]


def apart(images: Tensor | None, wire: str) -> list[Control]:
    """An IMAGE (B, H, W, C) as one control picture for each prompt; AtelierError naming the wire for what is none."""
    if images is None:
        return []
    if images.ndim != 4 or images.shape[-1] < 3 or not is_finite(images):
        raise AtelierError(f"{wire}: this is no picture in colour. Connect what a Load Image node gives.")
    return [(_as_shown(to_picture(one[..., :3])),) for one in images]


def _as_shown(picture: Image.Image) -> Tensor:
    """(1, H, W, 3) in 0..1, at the size that a control picture of this size has in training."""
    return _resized(picture, whole_size(*picture.size))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    return to_unit(cut(picture, size, (0, 0, *size)))[None]


def _in_shape(pixels: Tensor) -> Tensor:
    """(1, H, W, 3) in the fixed shape that is nearest to its own."""
    scaled, box = filled(pixels.shape[2], pixels.shape[1])
    return to_unit(cut(to_picture(pixels[0]), scaled, box))[None]


def unread(given: Sequence[Control], family: str, wire: str) -> list[str]:
    """The sentence that says so where pictures are given to a model that reads none; ``wire`` is where they came in."""
    if not given or family_named(family).edits:
        return []
    return [f"{wire}: a {family} model reads no control pictures, so these are not used."]


def of_grid(
    wired: Sequence[Control], runs: Iterable[Sequence[Sequence[Path]]], were_pairs: bool, family: str
) -> tuple[list[Control], list[str]]:
    """(what a grid's prompts are beside, what there is to say of it).

    ``runs``: files of control pictures that each run has handed on; ``were_pairs``: whether some file was trained on pairs.
    """
    said = unread(wired, family, "control")
    if wired or not family_named(family).edits:
        return list(wired), said
    try:
        found = opened(next((files for files in runs if files), ()))
    except AtelierError as error:
        return [], [f"control: the run's own control picture is gone, so all is drawn without one ({error})"]
    if not found and were_pairs:
        said.append("control: these LoRAs were trained on pairs; connect a picture that the prompts are to work on.")
    return found, said


@dataclass
class ControlPictures:
    """The control pictures of prompts: those of prompt i, and the last of them for all that follow."""

    codec: host.PictureCodec
    shows: Controls = NONE
    given: Sequence[Control] = ()
    drawn: tuple[int, int] = (512, 512)
    """(width, height) in pixels of what is drawn beside them."""
    ready: Sequence[EncodedText] = ()
    """Conditionings from other nodes, whose control pictures' latents are used where no pictures are ``given``."""
    _latents: dict[int, list[Tensor]] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)

    def place(self, number: int) -> int:
        """Which control pictures a prompt is beside; -1 for none."""
        return min(number, len(self.given or self.ready) - 1) if self.shows.shown else -1

    def seen(self, place: int) -> Control:
        """What the text encoder sees there."""
        if place < 0 or not self.shows.seen or not self.given:
            return ()
        return tuple(map(_in_shape, self.given[place])) if self.shows.in_shapes else self.given[place]

    def latents(self, place: int) -> list[Tensor]:
        """(1, C, h, w) each, or as a video VAE gives them; encoded once."""
        if place < 0:
            return []
        if not self.given:
            return [latent for latent in references.listed(self.ready[place]) if isinstance(latent, Tensor)]
        if place not in self._latents:
            self._latents[place] = [self.codec.encode(self._sized(pixels)) for pixels in self.given[place]]
        return self._latents[place]

    def _sized(self, pixels: Tensor) -> Tensor:
        """As large as what is drawn, or in a fixed shape, where the model wants them so."""
        if self.shows.in_shapes:
            return _in_shape(pixels)
        return _resized(to_picture(pixels[0]), self.drawn) if self.shows.as_large else pixels

    def cells(self) -> int:
        """Cells of the latents of the largest of them."""
        sizes = [self.drawn if self.shows.as_large else (one.shape[2], one.shape[1]) for group in self.given for one in group]
        sizes = [nearest(*size) for size in sizes] if self.shows.in_shapes else sizes
        most = max((sum(1 for _ in group) for group in self.given), default=0)
        side = self.codec.downscale
        return most * max((width // side * (height // side) for width, height in sizes), default=0) if self.shows.shown else 0

    def beside(self, text: CanvasText, place: int) -> CanvasText:
        """A CONDITIONING with the latents, as the host's own nodes put them there."""
        latents = self.latents(place)
        if not latents:
            return text
        ready = {} if self.given else self.ready[place]
        method = ready.get(references.METHOD, self.shows.method)
        told = {references.NAME: latents, **({references.METHOD: method} if method else {})}
        return [[cond, {**extras, **told}] for cond, extras in text]

    def digest(self, place: int) -> str:
        """Equal for equal pictures; empty for none."""
        if place < 0:
            return ""
        if place not in self._digests:
            found = hashlib.sha256(repr(self.shows).encode())
            for pixels in self.given[place]:
                levels = (pixels.detach().cpu().float() * 255).round().to(torch.uint8).contiguous()
                found.update(str(tuple(levels.shape)).encode() + levels.numpy().tobytes())
            self._digests[place] = found.hexdigest()
        return self._digests[place]


@dataclass
class Prompter:
    """Reads prompts, each beside its control pictures."""

    text: host.TextEncoder
    controls: ControlPictures
    live: bool = False
    """Whether the text encoder changes, so that nothing it has said is kept."""
    _texts: dict[tuple[str, int], CanvasText] = field(default_factory=dict)

    def __call__(self, prompt: str, number: int) -> CanvasText:
        """CONDITIONING of a prompt, as the host's own nodes make it."""
        place = self.controls.place(number)
        if (prompt, place) in self._texts:
            return self._texts[prompt, place]
        found = self.controls.beside(self.text.for_sampling(prompt, self.controls.seen(place)), place)
        if not self.live:
            self._texts[prompt, place] = found
        return found
