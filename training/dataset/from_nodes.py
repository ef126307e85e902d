"""Subsets from other nodes: every picture becomes a file, so that all settings apply to it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..config import SubsetConfig
from ..errors import AtelierError
from ..files import HandedOn, remove_longest_unused, replacing
from .cache import cache_key
from .caption_reader import CaptionReader
from .captions import arranged
from .choice_notes import choice_notes
from .clips import clips_of
from .films import write_film
from .heads import Face
from .index import Facts, Index
from .masks import same_shape
from .plan import bucket_of
from .samples import Sample, Subset, counted, some
from .scan import caption_now, head_notes
from .workers import Advance, Steps, in_parallel

CHANNELS = (1, 3, 4)
"""Grey, colour, colour with transparency."""
FILM = ".mkv"
"""Ending of films that are written."""
LIMIT = 5 * 2**30
"""Bytes on disk for the pictures; the longest unused go first."""
IN_USE = 86_400.0
"""Seconds after its last use during which a picture is not removed: a graph may still be on its way to the training."""
MADE = HandedOn()
"""Files that nodes' values became."""


def subset_of(
    images: Sequence[Tensor], texts: Sequence[str] | None, config: SubsetConfig, folder: Path, index: Path | None = None,
    progress: Callable[[int], Advance] | None = None, controls: Mapping[str, Sequence[Tensor]] | None = None,
    masks: Sequence[Tensor] | None = None,
) -> Subset:  # fmt: skip
    """The subset of a list of IMAGE (B, H, W, C) in 0..1, with one text for all, one for each picture, or None.

    ``controls``: lists of IMAGE by the name of their input, one picture for all or one for each: the control pictures of models
    that edit. ``masks``: a list of MASK (B, H, W) in 0..1, one for all or one for each: 1 is learnt.

    Every picture is written once into ``folder``, as a PNG of 8 bits under a name that stands for its pixels and its text: a
    caption file that Auto Caption puts beside it is not taken for a picture that comes with another text. A caption file wins
    over the text. With ``clip_frames`` each IMAGE is a film, written as one of FFV1, which loses nothing; one of a single
    frame is a picture. ``progress`` as in ``scan``. AtelierError naming the input for an empty list, numbers that don't fit, or
    no picture.
    """
    if config.clip_counts:
        _refuse_beside_films(controls, masks)
    pictures = _films(images) if config.clip_counts else _flat(images)
    if texts is not None and len(texts) not in (1, len(pictures)):
        what = counted(len(pictures), "film" if config.clip_counts else "picture")
        raise AtelierError(f"texts: there are {len(texts)} for {what}. Connect one for all, or one for each.")
    for number, given in enumerate(texts or (), start=1):
        if not isinstance(given, str):
            raise AtelierError(f"texts: number {number} is {type(given).__name__} and no text. Connect a node that gives texts.")
    captions = (
        [None] * len(pictures) if texts is None else [arranged(texts[i % len(texts)], config) for i in range(len(pictures))]
    )
    beside = [_each(name, _flat(given, name), len(pictures)) for name, given in (controls or {}).items()]
    laid = [] if masks is None else _masks_of(masks, pictures)
    if laid:
        config = replace(config, masks="files")
    memory = Index(index)

    def written(pixels: Tensor, text: str | None) -> tuple[Path, Facts]:
        path = write_picture(pixels, text, folder)
        return path, memory.facts(path)

    steps = Steps(progress, (2 + len(beside)) * len(pictures) + len(laid))
    try:
        files = in_parallel(lambda one: written(*one), list(zip(pictures, captions, strict=True)), steps)
        shown = [in_parallel(lambda one: written(one, None), group, steps) for group in beside]
        covers = in_parallel(lambda one: written(one, None), laid, steps)
        samples, warnings = _samples(files, captions, config, memory, steps)
        if covers:
            samples = [
                replace(sample, mask=path, mask_key=facts.key) for sample, (path, facts) in zip(samples, covers, strict=True)
            ]
            warnings += _blank(laid, config.mask_floor)
        if shown:
            samples = [replace(sample, controls=tuple(map(_control, own))) for sample, *own in zip(samples, *shown, strict=True)]
    except BaseException:
        memory.save(complete=False)
        raise
    memory.save()
    trim(folder, LIMIT)
    return Subset(config, tuple(samples), config.repeats or 1, warnings=tuple(dict.fromkeys(warnings)))


def _refuse_beside_films(controls: Mapping[str, Sequence[Tensor]] | None, masks: Sequence[Tensor] | None) -> None:
    for name in (*(controls or {}), *(() if masks is None else ("masks",))):
        raise AtelierError(
            f"{name}: clip_frames makes films of the images, and only pictures have such beside them. Disconnect {name}, or "
            "leave clip_frames empty."
        )


def _films(images: Sequence[Tensor]) -> list[Tensor]:
    """Every film (T, H, W, C), or picture (H, W, C) where there is but one frame."""
    found: list[Tensor] = []
    for number, batch in enumerate(images, start=1):
        frames = _flat([batch])
        if len(frames) > 1 and frames[0].shape[-1] == 4:
            raise AtelierError(
                f"images: film {number} has transparency, which films are not trained with. Connect it as it comes from Get "
                "Video Components, or lay it on a background."
            )
        found.append(torch.stack(frames) if len(frames) > 1 else frames[0])
    if not found:
        raise AtelierError("images: the list is empty. Connect a node that gives at least one film.")
    return found


def _each(name: str, found: Sequence[Tensor], count: int, hint: str = "") -> list[Tensor]:
    """One of ``found``, which came in by the input ``name``, for each of so many pictures."""
    if len(found) not in (1, count):
        raise AtelierError(
            f"{name}: there are {len(found)} for {counted(count, 'picture')}. Connect one for all, or one for each picture{hint}."
        )
    return [found[i % len(found)] for i in range(count)]


def _masks_of(masks: Sequence[Tensor], pictures: Sequence[Tensor]) -> list[Tensor]:
    """A mask (H, W, 1) for each picture, of its shape; AtelierError naming the one that isn't."""
    found: list[Tensor] = []
    for given in masks:
        batch = given
        if isinstance(batch, Tensor) and batch.ndim == 4 and 1 in (batch.shape[1], batch.shape[-1]):
            batch = batch.squeeze(1 if batch.shape[1] == 1 else -1)
        if not isinstance(batch, Tensor) or batch.ndim not in (2, 3):
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise AtelierError(f"masks: number {len(found) + 1} is no mask ({shape}). Connect what a node gives as MASK.")
        found += batch[None] if batch.ndim == 2 else batch
    if not found:
        raise AtelierError("masks: the list is empty. Connect a node that gives at least one.")
    for number, mask in enumerate(found, start=1):
        if not mask.isfinite().all():
            raise AtelierError(f"masks: number {number} holds NaN or infinite numbers. Look at it with a Preview Image node.")
    hint = (
        "; a node that cuts out objects one by one (individual_masks) must give one mask of all"
        if len(found) > len(pictures)
        else ""
    )
    each = _each("masks", found, len(pictures), hint)
    for number, (mask, pixels) in enumerate(zip(each, pictures, strict=True), start=1):
        (height, width), (own_height, own_width) = pixels.shape[:2], mask.shape
        if not same_shape((own_width, own_height), (width, height)):
            empty = "; Load Image gives an empty mask of 64 x 64 for a picture that has no transparency" if not mask.any() else ""
            raise AtelierError(
                f"masks: number {number} has {own_width} x {own_height} pixels and another shape than its picture ({width} x "
                f"{height}){empty}. Make it from the picture as it is connected here."
            )
    return [mask.unsqueeze(-1) for mask in each]


def _blank(masks: Sequence[Tensor], floor: float) -> list[str]:
    """The sentence that names masks with which nothing is chosen, as where a detector has found nothing."""
    # By the level that is written: what is darker than half a step is black.
    black = [str(number) for number, mask in enumerate(masks, start=1) if mask.max() * 255 < 0.5]
    if not black:
        return []
    what = "all of such a picture is learnt, as mask_floor is above 0" if floor else "nothing of such a picture is learnt"
    return [f"masks: {len(black)} of {len(masks)} are black all over ({some(black)}), and {what}. Leave these pictures out."]


def _control(written: tuple[Path, Facts]) -> Sample:
    path, facts = written
    return Sample(path, facts.width, facts.height, None, facts.key, look=facts.look)


def _samples(
    files: Sequence[tuple[Path, Facts]], captions: Sequence[str | None], config: SubsetConfig, memory: Index, steps: Steps
) -> tuple[list[Sample], list[str]]:
    """(samples, warnings about their captions)."""
    samples: list[Sample] = []
    short = 0
    faces: dict[Path, Face | None] = {}
    reader = CaptionReader(config)
    for (path, facts), text in zip(files, captions, strict=True):
        caption = caption_now(path, reader, text, None)
        focus = memory.focus(path, bucket_of(facts.width, facts.height, config)) if config.crop == "focus" else None
        face = faces[path] = memory.head(path) if config.crop == "head" else None
        head = face.box if face else None
        whole = Sample(path, facts.width, facts.height, caption, facts.key, text, focus, look=facts.look, head=head)
        film = memory.film(path) if config.clip_counts else None
        own = [whole] if film is None else clips_of(whole, film, config)
        short += not own
        samples += own
        steps.step()
    if not samples:
        raise AtelierError(
            f"clip_frames: every film of the images has fewer frames than {config.clip_counts[0]}. Write a smaller number there "
            "as well, or connect longer films."
        )
    too_short = [f"clip_frames: too few frames, and so not used: {short} of {counted(len(files), 'film')}."] if short else []
    return samples, [
        *too_short,
        *reader.notes(),
        *choice_notes(samples, config),
        *(head_notes(faces) if config.crop == "head" else []),
    ]


def write_picture(pixels: Tensor, text: str | None, folder: Path) -> Path:
    """The file of a picture (H, W, C), or of a film (T, H, W, C), in 0..1, written if it is not there; its time of access becomes
    that of its last use."""
    levels = (pixels.detach().cpu().float() * 255).round().clamp(0, 255).to(torch.uint8)
    digest = hashlib.sha256(levels.contiguous().numpy().tobytes()).hexdigest()
    path = folder / f"{cache_key(digest, tuple(levels.shape), text)[:32]}{FILM if levels.ndim == 4 else '.png'}"
    if not path.is_file() and levels.ndim == 4:
        with replacing(path) as temporary:
            write_film(temporary, levels.expand(-1, -1, -1, 3).numpy())
    elif not path.is_file():
        image = Image.fromarray(levels.squeeze(-1).numpy() if levels.shape[-1] == 1 else levels.numpy())
        with replacing(path) as temporary:
            image.save(temporary, "PNG", compress_level=4)
    with suppress(OSError):
        # The time of change stays: by it the index knows the picture again.
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    MADE.add([path])
    return path


def trim(folder: Path, limit: int) -> None:
    """Removes the longest unused pictures until the others take at most ``limit`` bytes, but none that is in use.

    Caption files beside them stay: somebody may have edited them, and they count again when the picture comes back.
    """
    rows: list[tuple[int, int, Path]] = []
    for path in (*folder.glob("*.png"), *folder.glob(f"*{FILM}")):
        with suppress(OSError):
            facts = path.stat()
            rows.append((facts.st_atime_ns, facts.st_size, path))
    oldest_in_use = time.time_ns() - int(IN_USE * 1e9)
    remove_longest_unused(rows, limit, lambda used, _: used > oldest_in_use)


def _flat(images: Sequence[Tensor], name: str = "images") -> list[Tensor]:
    """Every picture (H, W, C) of every batch; ``name`` is the input's."""
    out: list[Tensor] = []
    for batch in images:
        if not isinstance(batch, Tensor) or batch.ndim not in (3, 4) or batch.shape[-1] not in CHANNELS:
            shape = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise AtelierError(
                f"{name}: number {len(out) + 1} is no picture of 1, 3 or 4 channels ({shape}). Connect what a Load Image "
                "node gives."
            )
        out += batch if batch.ndim == 4 else [batch]
    if not out:
        raise AtelierError(f"{name}: the list is empty. Connect a node that gives at least one picture.")
    for number, pixels in enumerate(out, start=1):
        if not pixels.isfinite().all():
            raise AtelierError(f"{name}: number {number} holds NaN or infinite numbers. Look at it with a Preview Image node.")
    return out
