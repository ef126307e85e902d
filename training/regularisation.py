"""Regularisation set: pictures of the class as the model draws them before it has learnt anything, one file a picture.

Which picture has which name, prompt and seed depends on the settings alone. So a set that was cancelled is completed later, a
larger count adds to it, and a picture that is there with the same settings is not drawn again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import compatibility, host
from .config.sampling import Sampling
from .dataset import change_stamps
from .dataset.captions import caption_path, write_caption
from .dataset.images import check_picture, to_picture
from .dataset.names import NUMBERED
from .dataset.png_text import png_text
from .dataset.samples import counted
from .dataset.scan import MAX_REPEATS
from .dataset.walk import find
from .errors import AtelierError, NotFinite
from .files import Unreadable, open_plain, parse_json, replacing
from .protocols import CanvasText

NAME = "reg-{:05d}.png"
KEY = "lora_atelier.regularisation"
"""Name of the PNG text that holds a picture's settings as JSON."""
SYNTAX = "prompt_syntax"
"""What says how the prompts were read, where that is more than their words; without it they were read in ComfyUI's syntax."""
WIRED = "wired"
"""What says what came through wires in place of widgets; without it nothing did."""
MAX_COUNT = 100_000
IN_WORDS = {
    "prompt_text": "prompts", "sampler": "sampler_name", "model": "another model", "clip": "another text encoder",
    "vae": "another VAE", "wired": "other values through its wires",
}  # fmt: skip
"""What a setting is called on the node, or what a difference in it means."""


@dataclass(frozen=True)
class Planned:
    """One picture of the set before it is drawn."""

    index: int
    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Order:
    """What is to be drawn; refuses what cannot be."""

    prompts: tuple[str, ...]
    """Taken in turn."""
    count: int
    """Pictures in all."""
    sampling: Sampling
    """Its seed is that of the first picture; picture i has the seed + i."""

    def __post_init__(self) -> None:
        s = self.sampling
        for widget, value, low, high in (
            ("count", self.count, 1, MAX_COUNT), ("steps", s.steps, 1, 10_000), ("width", s.width, 16, 16_384),
            ("height", s.height, 16, 16_384), ("seed", s.seed, 0, 2**64 - 1),
        ):  # fmt: skip
            if not low <= value <= high:
                raise AtelierError(f"{widget}: {value} is outside {low} to {high}.")
        if not (math.isfinite(s.cfg) and 0 <= s.cfg <= 100):
            raise AtelierError(f"cfg: {s.cfg} is outside 0 to 100.")
        if s.seed + self.count > 2**64:
            raise AtelierError(f"seed: {s.seed} leaves no seed for each of {counted(self.count, 'picture')}; use a smaller one.")
        if not self.prompts or not all(self.prompts):
            raise AtelierError("prompts: write at least one prompt, one a line, for example: a photo of a man.")
        for widget, chosen, known in (
            ("sampler_name", s.sampler, host.samplers()), ("scheduler", s.scheduler, host.schedulers()),
        ):  # fmt: skip
            if chosen not in known:
                raise AtelierError(f"{widget}: this ComfyUI has no {chosen!r}. Choose one from the list.")

    def pictures(self) -> tuple[Planned, ...]:
        """Every picture of the set, first to last."""
        turns, first = len(self.prompts), self.sampling.seed
        return tuple(Planned(i, NAME.format(i), self.prompts[i % turns], first + i) for i in range(self.count))


@dataclass(frozen=True)
class SetState:
    """How much of the set is there."""

    kept: tuple[Planned, ...]
    missing: tuple[Planned, ...]
    """To be drawn, the broken ones among them."""
    broken: tuple[str, ...]
    """Names of files that cannot be read and are drawn anew."""

    def describe(self, folder: str) -> str:
        """What was done, in a line."""
        return f"{folder}: {counted(len(self.missing), 'picture')} drawn, {len(self.kept)} there already"

    def remarks(self) -> list[str]:
        """What was amiss."""
        return [f"{name} could not be read and was drawn anew." for name in self.broken]


class RegularisationSet:
    """Draws the pictures of ``order`` into ``folder``; the model is only sampled from."""

    def __init__(
        self,
        model: host.Model,
        text: host.TextEncoder,
        codec: host.PictureCodec,
        order: Order,
        folder: Path,
        graph: Mapping[str, str],
        wired: host.Wired = host.NOTHING_WIRED,
    ):
        """``wired`` takes the place of some of the order's sampling."""
        wired.check(model)
        self.wired = wired
        self.model, self.text, self.codec = model, text, codec
        self.order, self.folder, self.graph = order, folder, graph
        compatibility.check(model, text, codec)
        for widget, pixels in (("width", order.sampling.width), ("height", order.sampling.height)):
            square = compatibility.square_of(model, codec)
            if pixels % square:
                near, whose = max(1, round(pixels / square)) * square, "VAE" if square == codec.downscale else "model"
                raise AtelierError(f"{widget}: {pixels} is not a multiple of {square}, the {whose}'s cell; try {near}.")
        self._models = {"model": model.sampling_identity(), "clip": text.identity(), "vae": codec.identity()}
        self._through = {WIRED: wired.identity()} if wired else {}
        self._conditionings: dict[str, CanvasText] = {}

    def facts(self, picture: Planned) -> dict[str, Any]:
        """Everything that a picture depends on, as it is stored in the file."""
        sampling = replace(self.wired.told(self.order.sampling), seed=picture.seed).as_dict()
        reading = self.text.reading_of(f"{picture.prompt}\n{self.order.sampling.negative}")
        syntax = {SYNTAX: reading[0]} if reading else {}
        return {"index": picture.index, "prompt_text": picture.prompt, **sampling, **self._models, **syntax, **self._through}

    def look(self) -> SetState:
        """What is there; AtelierError naming the first picture whose place is taken by one with other settings."""
        kept, missing, broken, other = [], [], [], []
        for picture in self.order.pictures():
            host.check_interrupt()
            path = self.folder / picture.name
            if not (path.exists() or path.is_symlink()):
                missing.append(picture)
                continue
            stated, whole = read_facts(path)
            if not whole:
                missing.append(picture)
                broken.append(picture.name)
            elif different := differences(stated, self.facts(picture)):
                other.append((path, different))
            else:
                kept.append(picture)
        if other:
            path, different = other[0]
            raise AtelierError(
                f"{path}: this picture is there already and {different}"
                + (f", and so {'is' if len(other) == 2 else 'are'} {len(other) - 1} more" if len(other) > 1 else "")
                + ". Nothing is overwritten: write another folder, set the widgets back, or take the old pictures away."
            )
        return SetState(tuple(kept), tuple(missing), tuple(broken))

    def render(
        self,
        batch: int,
        advance: Callable[..., None],
        show: Callable[[str], None] = lambda line: None,
        captions: bool = False,
    ) -> SetState:
        """Draws what is missing, ``batch`` pictures at a time; returns what was there before.

        ``advance(pictures there, the newest)`` may raise to cancel; what is saved stays. ``captions``: the prompt is written
        beside every picture that has no caption file.
        """
        if batch < 1:
            raise AtelierError(f"render_batch_size: {batch} is below 1.")
        state = self.look()
        if state.missing:
            compatibility.check_conditioning(self.model, self._conditioning(self.order.sampling.negative))
        self._make_folder()
        for picture in state.kept if captions else ():
            self._caption(picture)
        done = len(state.kept)
        if done:
            advance(done)
        for group in batches(state.missing, batch):
            show(f"drawing picture {done + 1} of {self.order.count}")
            newest = None
            for picture, newest in zip(group, self._draw(group), strict=True):
                self._save(picture, newest)
                if captions:
                    self._caption(picture)
            done += len(group)
            advance(done, newest)
        return state

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AtelierError(f"folder: {self.folder} cannot be made ({error.strerror}). Write another one.") from error

    def _draw(self, group: Sequence[Planned]) -> list[Image.Image]:
        s, cell = self.order.sampling, self.codec.downscale
        positive, negative = self._conditioning(group[0].prompt), self._conditioning(s.negative)
        try:
            latent = self.model.sample(
                positive, negative, s.settings, latent_size=(s.height // cell, s.width // cell),
                seed=[picture.seed for picture in group], wired=self.wired,
            )  # fmt: skip
            pixels = self.codec.decode(latent)
        except Exception as error:
            if (said := compatibility.told(error, self.model)) is not None:
                raise said from error
            raise
        try:
            compatibility.check_picture(self.model, latent, pixels)
        except NotFinite as error:
            raise NotFinite(f"{group[0].name}: it was not saved. {error}") from None
        return [to_picture(one) for one in pixels]

    def _conditioning(self, text: str) -> CanvasText:
        if text not in self._conditionings:
            self._conditionings[text] = self.text.for_sampling(text)
        return self._conditionings[text]

    def _save(self, picture: Planned, image: Image.Image) -> None:
        path = self.folder / picture.name
        info = PngInfo()
        for name, text in {**self.graph, KEY: json.dumps(self.facts(picture))}.items():
            info.add_text(name, text)
        before = change_stamps.stamp(path)
        try:
            with replacing(path) as temporary:
                image.save(temporary, format="PNG", pnginfo=info)
        except OSError as error:
            raise AtelierError(
                f"{path}: the picture cannot be written ({error.strerror}). Allow writing there, or write another folder."
            ) from error
        change_stamps.remember(path, before)

    def _caption(self, picture: Planned) -> None:
        path = caption_path(self.folder / picture.name)
        if path.exists():
            return
        before = change_stamps.stamp(path)
        write_caption(path, picture.prompt)
        change_stamps.remember(path, before)


def batches(pictures: Iterable[Planned], size: int) -> Iterator[list[Planned]]:
    """Groups of one prompt, at most ``size`` pictures each; every picture is in exactly one."""
    waiting: dict[str, list[Planned]] = {}
    for picture in pictures:
        group = waiting.setdefault(picture.prompt, [])
        group.append(picture)
        if len(group) == size:
            yield waiting.pop(picture.prompt)
    yield from waiting.values()


def read_facts(path: Path) -> tuple[dict[str, Any] | None, bool]:
    """(the settings that the picture states, whether it is a whole picture); AtelierError if the file may not be read."""
    try:
        with open_plain(path) as file:
            file.read(1)
    except (OSError, Unreadable) as error:
        why = error.why if isinstance(error, Unreadable) else error.strerror
        raise AtelierError(f"{path}: this cannot be read ({why}). Allow it, or take it away.") from error
    try:
        check_picture(path)
    except AtelierError:
        return None, False
    try:
        text = png_text(path, KEY)
        stated = parse_json(text.encode("utf-8", "replace")) if text else None
    except ValueError:
        stated = None
    return (stated if isinstance(stated, dict) else None), True


def differences(stated: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    """What differs, to follow "this picture is there already and"; an empty text if nothing does."""
    if stated is None:
        return "does not say with which settings it was made"
    said = []
    stated, wanted = ({SYNTAX: "ComfyUI", WIRED: "", **facts} for facts in (stated, wanted))
    for key in (key for key in wanted if key not in stated or stated[key] != wanted[key]):
        values = "" if key in ("model", "clip", "vae", WIRED) else f" {_short(stated.get(key))} in place of {_short(wanted[key])}"
        said.append(IN_WORDS.get(key, key) + values)
    return f"was made with other settings ({', '.join(said)})" if said else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_repeats(folder: Path) -> None:
    """Refuses, before anything is drawn, a folder whose name asks for repeats that no dataset can have."""
    match = NUMBERED.fullmatch(folder.name)
    if match and not 1 <= int(match[1]) <= MAX_REPEATS:
        raise AtelierError(f"folder: {folder.name} asks for {match[1]} repeats; the number in front must be 1 to {MAX_REPEATS}.")


def set_stamp(folder: Path, root: Path, count: int) -> str:
    """Hex digest that changes when someone else changes the folder; what is drawn here, or is to be drawn, changes nothing."""
    try:
        found = find(folder, root)
    except AtelierError:
        found = ()
    own = {folder / NAME.format(i) for i in range(count)}
    pictures = sorted(own.union(*(one.pictures for one in found)), key=str)
    beside = [path for picture in pictures for path in (picture, caption_path(picture))]
    return change_stamps.files_stamp([*beside, *(table for one in found for table in one.tables)])
