"""Dataset scan: the pictures of a folder, looked into, with their captions and masks, as subsets of a dataset."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..config import SubsetConfig
from ..errors import AtelierError
from . import holdout, masks, unused
from .caption_reader import CaptionReader
from .captions import caption_file_of, caption_path
from .change_stamps import files_stamp
from .choice_notes import choice_notes
from .clips import clips_of, is_slow
from .heads import Face
from .index import Facts, Index, file_digest
from .jsonl import captions_of
from .listing import FoundFolder, refuse_outside
from .names import key
from .plan import bucket_of
from .samples import Dataset, Sample, Subset, one_each, some
from .unused import Unused
from .walk import find
from .workers import Advance, Steps, in_parallel

MAX_REPEATS = 10_000
# A number above this in a folder's name may be a year.
UNUSUAL_REPEATS = 200
log = logging.getLogger("lora-atelier")


def repeats_of(found: FoundFolder, config: SubsetConfig) -> tuple[int, str | None]:
    """(repeats, warning) from the settings, else the folder's name, else 1."""
    if config.repeats or found.repeats is None:
        return config.repeats or 1, None
    name = found.folder.name
    if not 1 <= found.repeats <= MAX_REPEATS:
        raise AtelierError(
            f"folder: {name} asks for {found.repeats} repeats. Set repeats on the node, or put a number from 1 to {MAX_REPEATS} "
            "before the first '_' of the name."
        )
    unusual = f"{name} means {found.repeats} repeats of every picture; set repeats on the node if that is not meant."
    return found.repeats, unusual if found.repeats > UNUSUAL_REPEATS else None


def _facts(
    pictures: Sequence[Path], config: SubsetConfig, index: Index, steps: Steps
) -> tuple[dict[Path, Facts], dict[Path, str]]:  # fmt: skip
    """(facts by picture, what is wrong with those that are left out); AtelierError for a broken picture that may not be."""

    def look_into(path: Path) -> Facts | AtelierError:
        try:
            return index.facts(path)
        except AtelierError as error:
            if config.broken == "stop":
                raise
            return error

    found = dict(zip(pictures, in_parallel(look_into, pictures, steps), strict=True))
    broken = {path: error for path, error in found.items() if isinstance(error, AtelierError)}
    facts = {path: one for path, one in found.items() if isinstance(one, Facts)}
    if not facts:
        raise next(iter(broken.values()))
    return facts, {path: f"left out: {error}" for path, error in broken.items()}


def caption_now(
    path: Path, reader: CaptionReader, fallback: str | None, class_caption: str | None, other: Path | None = None,
    further: Sequence[Path] = (),
) -> str | None:  # fmt: skip
    """The caption file as it is on the disk now, else ``fallback``; with the texts of ``further`` files as alternatives; else the
    class caption, else None.

    ``other`` is a caption file under another name than the usual one, which counts while there is no usual one.
    """
    if not reader.config.captions:
        return class_caption or ""
    own = reader.caption(path, other)
    found = reader.together(fallback if own is None else own, further)
    return class_caption if found is None else found


def _mask(path: Path, config: SubsetConfig, one: Facts, found: FoundFolder, root: Path) -> tuple[Path | None, str]:
    """(file of the loss mask, SHA-256 of it); AtelierError naming a mask that is broken or has another shape."""
    if config.masks == "alpha":
        return path, one.key
    file = found.masks.get(path) if config.masks == "files" else None
    if file is None:
        return None, ""
    refuse_outside(file, root)
    masks.check_mask(file, path, (one.width, one.height))
    return file, file_digest(file)


def _looked_at(index: Index, path: Path) -> None:
    """Several at a time, so that the index knows them; what is wrong with one is said where it is used."""
    with suppress(AtelierError):
        index.facts(path)


def _further(found: FoundFolder, picture: Path, config: SubsetConfig) -> dict[str, Path]:
    """The further caption files of a picture that are named, by their endings."""
    there = found.further.get(picture, {})
    return {ending: there[key(ending)] for ending in config.further_endings if key(ending) in there}


def _control(path: Path, index: Index, root: Path) -> Sample:
    """A control picture; AtelierError naming one that is broken."""
    refuse_outside(path, root)
    one = index.facts(path)
    return Sample(path, one.width, one.height, None, one.key, look=one.look)


def _subset(
    found: FoundFolder, config: SubsetConfig, root: Path, index: Index, base: Path, texts: Mapping[Path, str], steps: Steps
) -> Subset:  # fmt: skip
    facts, broken = _facts(found.pictures, config, index, steps)
    class_caption = config.class_caption.strip() or found.class_caption
    in_parallel(partial(_looked_at, index), [file for path in facts for file in found.controls.get(path, ())], steps)
    samples: list[Sample] = []
    reader = CaptionReader(config)
    short: list[Path] = []
    slow: list[str] = []
    faces: dict[Path, Face | None] = {}
    for path, one in facts.items():
        other = found.captions.get(path)
        for file in (caption_path(path, config.caption_extension), *([other] if other else [])):
            refuse_outside(file, root)
        further = tuple(_further(found, path, config).values()) if config.captions else ()
        for file in further:
            refuse_outside(file, root)
        caption = caption_now(path, reader, texts.get(path), class_caption, other, further)
        focus = index.focus(path, bucket_of(one.width, one.height, config)) if config.crop == "focus" else None
        face = index.head(path) if config.crop == "head" else None
        faces[path] = face
        mask, mask_key = _mask(path, config, one, found, root)
        try:
            controls = tuple(_control(file, index, root) for file in found.controls.get(path, ()))
        except AtelierError as error:
            if config.broken == "stop":
                raise
            broken[path] = f"{path}: left out with its control picture. {error}"
            continue
        whole = Sample(
                path, one.width, one.height, caption, one.key, texts.get(path), focus, mask, mask_key, one.look,
                caption_file=other, head=face.box if face else None, further=further, controls=controls,
            )  # fmt: skip
        film = index.film(path) if config.clip_counts else None
        if film is None:
            samples.append(whole)
        else:
            refuse_beside(whole, config)
            samples += (own := clips_of(whole, film, config))
            short += [] if own else [path]
            slow += [path.name] if own and is_slow(film, config) else []
        steps.step()
    if not samples and broken:
        raise AtelierError(next(iter(broken.values())))
    if not samples:
        raise AtelierError(
            f"clip frames: every film in {found.folder} has fewer frames than {config.clip_counts[0]}. Write a smaller number "
            "there as well, or bring longer films."
        )
    repeats, unusual = repeats_of(found, config)
    subset = Subset(config, tuple(samples), repeats, class_caption)
    meant = {file for path in found.pictures for file in _further(found, path, config).values()}
    passed = (
        *(one for one in found.unused if one[1] not in meant),
        *_not_used(found, config, broken),
        *((unused.SHORT, path) for path in short),
    )
    each = one_each(samples)
    said = [
        *([unusual] if unusual else []), *found.warnings, *broken.values(), *reader.notes(),
        *_mask_notes(found, config, each), *unused.sentences(passed, base, quiet=False),
        *_content_notes(facts, found, config, each), *choice_notes(each, config), *control_notes(config, each),
        *holdout.remarks(subset),
        *(head_notes(faces) if config.crop == "head" else []),
        *slow_notes(slow, config),
    ]  # fmt: skip
    for warning in said:
        log.warning("dataset %s: %s", config.folder, warning)
    return dataclasses.replace(
        subset, warnings=tuple(said), notes=tuple(unused.sentences(passed, base, quiet=True)),
        passed_over=(*((unused.name_of(path, base), why) for path, why in broken.items()), *unused.each(passed, base)),
    )  # fmt: skip


def refuse_beside(film: Sample, config: SubsetConfig) -> None:
    """AtelierError naming what cannot belong to a film."""
    if film.controls:
        raise AtelierError(
            f"{film.path}: this is a film, and {film.controls[0].path.name} would be its control picture, which only pictures "
            "have. Rename or remove that, or leave clip_frames empty."
        )
    if config.masks == "alpha":
        raise AtelierError(
            f"masks: {film.path.name} is a film, whose transparency is not read. Set masks to files, where one mask holds for "
            "all frames, or put films and pictures into folders of their own."
        )


def slow_notes(slow: Sequence[str], config: SubsetConfig) -> list[str]:
    """What to know of films with fewer frames a second than ``clip_rate``."""
    if not slow:
        return []
    return [
        f"fewer frames a second than clip_rate asks for ({config.clip_rate:g}), so that some frames come twice and motion may be "
        f"learnt as jerky ({len(slow)}): {some(slow)}. Lower clip_rate, or take them out."
    ]


def head_notes(faces: Mapping[Path, Face | None]) -> list[str]:
    """What was not found for the crop ``head``, or found more than once."""
    without = [path.name for path, face in faces.items() if face is None]
    crowds = [path.name for path, face in faces.items() if face is not None and face.others]
    said = []
    if without:
        said.append(
            f"no face was found, so the whole picture is trained on, cut at its centre ({len(without)}): {some(without)}. Cut "
            "these by hand if the head alone is meant."
        )
    if crowds:
        said.append(f"several faces, of which the largest is taken ({len(crowds)}): {some(crowds)}. Is it the right one?")
    return said


def _not_used(found: FoundFolder, config: SubsetConfig, broken: Collection[Path]) -> Unused:
    """What belongs to the pictures and is not used all the same: by the settings, or with those that are left out."""

    def captions(pictures: Iterable[Path]) -> dict[Path, None]:
        return dict.fromkeys(caption_file_of(path, config.caption_extension, found.captions.get(path)) for path in pictures)

    whole = [path for path in found.pictures if path not in broken] if broken else []
    out: list[tuple[unused.Reason, Path]] = []
    if not config.captions:
        further = dict.fromkeys(file for path in found.pictures for file in _further(found, path, config).values())
        out += [(unused.CAPTIONS_OFF, file) for file in (*captions(found.pictures), *further, *found.tables)]
    elif broken:
        used = captions(whole)
        out += [(unused.CAPTION_OF_UNUSED, file) for file in captions(broken) if file not in used]
    if broken:
        out += [(unused.CONTROL_OF_UNUSED, file) for path in broken for file in found.controls.get(path, ())]
    if config.masks != "files":
        out += [(unused.MASKS_OFF, file) for file in dict.fromkeys(found.masks.values())]
    elif broken:
        masked = {found.masks.get(path) for path in whole}
        ones = dict.fromkeys(found.masks[path] for path in broken if path in found.masks)
        out += [(unused.MASK_OF_UNUSED, file) for file in ones if file not in masked]
    return tuple(one for one in out if os.path.lexists(one[1]))


def _mask_notes(found: FoundFolder, config: SubsetConfig, samples: Sequence[Sample]) -> list[str]:
    said = []
    if found.guessed:
        files = [file.name for file in found.guessed]
        said.append(f"taken for masks by their names ({len(files)}): {some(files)}. Rename those that are pictures to train on.")
    bare = [sample.path.name for sample in samples if sample.mask is None]
    if config.masks == "files" and bare:
        said.append(f"no mask, so all of the picture is learnt: {', '.join(bare[:3])}{' and others' if len(bare) > 3 else ''}.")
    return said


def control_notes(config: SubsetConfig, samples: Sequence[Sample]) -> list[str]:
    """What to know of pairs: pictures without a control picture among others, and cuts that these do not follow."""
    bare = [sample.path.name for sample in samples if not sample.controls]
    if len(bare) == len(samples):
        return []
    said = []
    if bare:
        said.append(f"no control picture, so they are trained on by their caption alone ({len(bare)}): {some(bare)}.")
    if config.crop in ("random", "head"):
        said.append(f"crop is {config.crop}: what a picture is cut to is not what its control picture shows, which stays whole.")
    return said


def _content_notes(
    facts: dict[Path, Facts], found: FoundFolder, config: SubsetConfig, samples: Sequence[Sample]
) -> list[str]:  # fmt: skip
    """What was seen in the files: further frames, empty captions, captions from files under other names."""
    said = []
    used = {sample.path for sample in samples if not sample.stretch}
    if several := [path.name for path, one in facts.items() if one.several and path in used]:
        said.append(f"of several frames or pages only the first is used ({len(several)}): {some(several)}.")
    if config.captions and (empty := [s.path.name for s in samples if s.caption == ""]):
        said.append(f"captions that are empty, and are trained on as that ({len(empty)}): {some(empty)}.")
    return said


def scan(
    folder: Path, config: SubsetConfig, root: Path | None = None, index: Path | None = None,
    progress: Callable[[int], Advance] | None = None,
) -> tuple[Subset, ...]:  # fmt: skip
    """The subsets of a folder, in natural order: its own pictures, then one subset for each ``N_name`` sub-folder.

    Repeats: ``config.repeats`` if above 0, else the number in the folder's name, else 1. A picture's caption is its caption
    file, else its line in a ``.jsonl`` file, else the class caption of the settings, else the text after the first ``_`` of the
    folder's name, else None. ``index`` is the file that remembers pictures from earlier sessions. ``progress(total)`` gives the
    function that is called with every step that is done; when it raises, what was learnt until then is remembered. Raises
    AtelierError naming the file or folder: a missing or empty folder, a broken or too large picture, a link out of ``root``
    (default: the folder itself).
    """
    inside = (root or folder).resolve()
    memory = Index(index)
    subsets = []
    every = find(folder, root, config.nested, config.caption_extension, bool(config.clip_counts))
    beside = sum(len(group) for found in every for group in found.controls.values())
    steps = Steps(progress, 2 * sum(len(found.pictures) for found in every) + beside)
    tables = [table for found in every for table in found.tables]
    # A table may stand in a folder around that of the pictures, as those of Hugging Face do.
    texts, said = captions_of(tables, [path for found in every for path in found.pictures], config)
    every = (dataclasses.replace(every[0], warnings=(*every[0].warnings, *said)), *every[1:])
    try:
        for found in every:
            below = "" if found.folder == folder else f"/{found.folder.relative_to(folder).as_posix()}"
            own = dataclasses.replace(config, folder=config.folder + below)
            subsets.append(_subset(found, own, inside, memory, folder, texts, steps))
    except BaseException:
        memory.save(complete=False)
        raise
    memory.save()
    return tuple(subsets)


def folder_stamp(
    folder: Path, caption_extension: str = ".txt", root: Path | None = None, nested: bool = False, films: bool = False
) -> str:  # fmt: skip
    """Hex digest that changes when a picture, caption or mask in the folder comes, goes or changes; opens no file."""
    every = find(folder, root, nested, caption_extension, films)
    pairs = [(path, found) for found in every for path in found.pictures]
    beside = [
        file for path, found in pairs
        for file in (
            path, caption_path(path, caption_extension), found.captions.get(path), found.masks.get(path),
            *found.further.get(path, {}).values(), *found.controls.get(path, ()),
        ) if file
    ]  # fmt: skip
    return files_stamp([*beside, *(table for found in every for table in found.tables)])


def refresh_captions(dataset: Dataset) -> Dataset:
    """The dataset with the captions that are on the disk now.

    A dataset on a wire is from the time when its folder was read; captions may have been written since. Every subset reads by
    its own settings, since one picture may be in several; a picture without files on the disk keeps the caption it came with.
    """

    def now(subset: Subset) -> Subset:
        if subset.config.slider and subset.config.slider.prompts:
            return subset  # its prompts stand in their place
        reader = CaptionReader(subset.config)

        def text(s: Sample) -> str | None:
            return caption_now(s.path, reader, s.fallback, subset.class_caption, s.caption_file, s.further)

        samples = (s if s.ready else dataclasses.replace(s, caption=text(s)) for s in subset.samples)
        return dataclasses.replace(subset, samples=tuple(samples))

    return Dataset(tuple(now(subset) for subset in dataset.subsets))
