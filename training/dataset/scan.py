"""Dataset scan: folders of pictures, flat, in kohya's layout of ``N_name`` sub-folders, or nested."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..config import SubsetConfig
from ..errors import AtelierError
from . import masks
from .caption_reader import CaptionReader
from .captions import caption_path
from .change_stamps import files_stamp
from .images import EXTENSIONS
from .index import Facts, Index, file_digest
from .jsonl import captions_of
from .plan import bucket_of
from .samples import Dataset, Sample, Subset

NUMBERED = re.compile(r"(\d+)_(.*)", re.DOTALL)
OTHER_PICTURES = frozenset({".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".psd"}) - EXTENSIONS
MAX_REPEATS = 10_000
# A number above this in a folder's name may be a year.
UNUSUAL_REPEATS = 200
WORKERS = 4
"""Pictures that are looked into at once; decoding a large one takes up to 0.7 GB."""
FORMATS = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))


@dataclass(frozen=True)
class FoundFolder:
    """One folder's files before any of them is opened."""

    folder: Path
    pictures: tuple[Path, ...]
    repeats: int | None
    """The number before the first ``_`` of the folder's name."""
    class_caption: str | None
    warnings: tuple[str, ...]
    tables: tuple[Path, ...] = ()
    """``.jsonl`` files with captions."""
    has_masks: bool = False
    """Whether there are files that only serve as masks."""


def natural_key(name: str) -> tuple[object, ...]:
    """Sort key by which "2.png" comes before "10.png", the same on every system."""
    parts = re.split(r"(\d+)", name.casefold())
    return (*((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part), (-1, name))


def _entries(folder: Path) -> list[Path]:
    """Files and folders in natural order, without hidden ones."""
    try:
        return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda p: natural_key(p.name))
    except FileNotFoundError as error:
        raise AtelierError(f"folder: {folder} does not exist. Choose another one, or put the pictures there.") from error
    except NotADirectoryError as error:
        raise AtelierError(f"folder: {folder} is a file. Choose the folder around it.") from error
    except OSError as error:
        raise AtelierError(f"folder: {folder} cannot be read ({error.strerror}). Allow reading it.") from error


def _refuse_outside(path: Path, root: Path) -> None:
    """A link in a shared folder must not pull in files from elsewhere on this computer."""
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise AtelierError(f"{path}: this is a link that leads out of {root}. Copy the file into the folder instead.")


def _find(folder: Path, root: Path) -> tuple[FoundFolder, list[Path]]:
    """The folder's own pictures, and its sub-folders."""
    pictures, folders, tables, warnings, has_masks = [], [], [], [], False
    for entry in _entries(folder):
        suffix = entry.suffix.lower()
        if entry.is_dir():
            has_masks |= entry.name == masks.FOLDER
            folders.append(entry)
        elif masks.is_mask(entry):
            has_masks = True
        elif suffix in EXTENSIONS:
            _refuse_outside(entry, root)
            pictures.append(entry)
        elif suffix == ".jsonl":
            _refuse_outside(entry, root)
            tables.append(entry)
        elif suffix in OTHER_PICTURES:
            warnings.append(f"{entry.name} is not used: its format is not one of {FORMATS}.")
    match = NUMBERED.fullmatch(folder.name)
    repeats, caption = (int(match[1]), match[2].strip() or None) if match else (None, None)
    return FoundFolder(folder, tuple(pictures), repeats, caption, tuple(warnings), tuple(tables), has_masks), folders


def _walk(folder: Path, root: Path, nested: bool, ignored: list[str]) -> list[FoundFolder]:
    """``folder`` with all that belongs to it, then each ``N_name`` folder below; ``ignored`` grows by what is passed over."""
    own, below = _find(folder, root)
    numbered: list[FoundFolder] = []
    for path in below:
        if path.name == masks.FOLDER:
            continue
        if NUMBERED.fullmatch(path.name):
            _refuse_outside(path, root)
            numbered += _walk(path, root, nested, ignored) if nested else [_find(path, root)[0]]
        elif nested and not path.is_symlink():
            inner, *others = _walk(path, root, nested, ignored)
            own = _joined(own, inner)
            numbered += others
        elif not path.is_symlink() and any(entry.suffix.lower() in EXTENSIONS for entry in _entries(path)):
            ignored.append(path.name)
    return [own, *numbered]


def _joined(own: FoundFolder, inner: FoundFolder) -> FoundFolder:
    return dataclasses.replace(
        own, pictures=own.pictures + inner.pictures, warnings=own.warnings + inner.warnings, tables=own.tables + inner.tables,
        has_masks=own.has_masks or inner.has_masks,
    )  # fmt: skip


def _repeats(found: FoundFolder, config: SubsetConfig) -> tuple[int, str | None]:
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


def find(folder: Path, root: Path | None = None, nested: bool = False) -> tuple[FoundFolder, ...]:
    """``folder`` and its ``N_name`` sub-folders, as far as they hold pictures; AtelierError if there is none.

    ``nested``: the pictures of all other sub-folders, however deep, belong to the folder around them. Links may lead anywhere
    inside ``root`` (default: the folder itself) and nowhere else.
    """
    inside = (root or folder).resolve()
    _refuse_outside(folder, inside)
    ignored: list[str] = []
    found = _walk(folder, inside, nested, ignored)
    own = found[0]
    with_pictures = [one for one in found if one.pictures]
    if not with_pictures:
        names = ", ".join(ignored[:3])
        hint = f" Its sub-folders ({names}) have no number in front: choose one of them, or switch nested on." if ignored else ""
        other = f" {own.warnings[0]}" if own.warnings else ""
        expected = f"Put pictures ({FORMATS}) there, or into sub-folders named like '10_name'."
        raise AtelierError(f"folder: {folder} has no pictures. {expected}{hint}{other}")
    if ignored:
        note = f"sub-folders without a number in front are not used: {', '.join(ignored)}. Switch nested on to take them."
        with_pictures[0] = dataclasses.replace(with_pictures[0], warnings=(*with_pictures[0].warnings, note))
    return tuple(with_pictures)


def _facts(pictures: Sequence[Path], config: SubsetConfig, index: Index) -> tuple[dict[Path, Facts], list[str]]:
    """(facts by picture, warnings about those that are left out); AtelierError for a broken picture unless it may be left out."""

    def look_into(path: Path) -> Facts | AtelierError:
        try:
            return index.facts(path)
        except AtelierError as error:
            if config.broken == "stop":
                raise
            return error

    with ThreadPoolExecutor(WORKERS) as pool:
        found = dict(zip(pictures, pool.map(look_into, pictures), strict=True))
    broken = [error for error in found.values() if isinstance(error, AtelierError)]
    facts = {path: one for path, one in found.items() if isinstance(one, Facts)}
    if not facts:
        raise broken[0]
    return facts, [f"left out: {error}" for error in broken]


def caption_now(path: Path, reader: CaptionReader, fallback: str | None, class_caption: str | None) -> str | None:
    """The caption file as it is on the disk now, else ``fallback``, else the class caption, else None."""
    if not reader.config.captions:
        return class_caption or ""
    return next((text for text in (reader.caption(path), fallback, class_caption) if text is not None), None)


def _mask(path: Path, config: SubsetConfig, one: Facts, root: Path) -> tuple[Path | None, str]:
    """(file of the loss mask, SHA-256 of it); AtelierError naming a mask that is broken or has another shape."""
    if config.masks == "alpha":
        return path, one.key
    for file in masks.mask_files(path) if config.masks == "files" else ():
        _refuse_outside(file, root)
        if file.is_file():
            masks.check_mask(file, path, (one.width, one.height))
            return file, file_digest(file)
    return None, ""


def _subset(found: FoundFolder, config: SubsetConfig, root: Path, index: Index) -> Subset:
    facts, warnings = _facts(found.pictures, config, index)
    texts, unknown = captions_of(found.tables, found.pictures, config)
    class_caption = config.class_caption.strip() or found.class_caption
    samples, reader = [], CaptionReader(config)
    for path, one in facts.items():
        _refuse_outside(caption_path(path, config.caption_extension), root)
        caption = caption_now(path, reader, texts.get(path), class_caption)
        focus = index.focus(path, bucket_of(one.width, one.height, config)) if config.crop == "focus" else None
        mask, mask_key = _mask(path, config, one, root)
        samples.append(
            Sample(path, one.width, one.height, caption, one.key, texts.get(path), focus, mask, mask_key, one.look)
        )  # fmt: skip
    repeats, unusual = _repeats(found, config)
    notes = [
        *([unusual] if unusual else []),
        *found.warnings,
        *warnings,
        *reader.notes(),
        *unknown,
        *_mask_notes(found, config, samples),
    ]
    return Subset(config, tuple(samples), repeats, class_caption, tuple(notes))


def _mask_notes(found: FoundFolder, config: SubsetConfig, samples: Sequence[Sample]) -> list[str]:
    if config.masks == "off" and found.has_masks:
        return ["mask files are there and not used; set masks to files to use them."]
    bare = [sample.path.name for sample in samples if sample.mask is None]
    if config.masks == "files" and bare:
        return [f"no mask, so all of the picture is learnt: {', '.join(bare[:3])}{' and others' if len(bare) > 3 else ''}."]
    return []


def scan(folder: Path, config: SubsetConfig, root: Path | None = None, index: Path | None = None) -> tuple[Subset, ...]:
    """The subsets of a folder, in natural order: its own pictures, then one subset for each ``N_name`` sub-folder.

    Repeats: ``config.repeats`` if above 0, else the number in the folder's name, else 1. A picture's caption is its caption
    file, else its line in a ``.jsonl`` file, else the class caption of the settings, else the text after the first ``_`` of the
    folder's name, else None. ``index`` is the file that remembers pictures from earlier sessions. Raises AtelierError naming the
    file or folder: a missing or empty folder, a broken or too large picture, a link out of ``root`` (default: the folder itself).
    """
    inside = (root or folder).resolve()
    memory = Index(index)
    subsets = []
    for found in find(folder, root, config.nested):
        below = "" if found.folder == folder else f"/{found.folder.relative_to(folder).as_posix()}"
        subsets.append(_subset(found, dataclasses.replace(config, folder=config.folder + below), inside, memory))
    memory.save()
    return tuple(subsets)


def folder_stamp(folder: Path, caption_extension: str = ".txt", root: Path | None = None, nested: bool = False) -> str:
    """Hex digest that changes when a picture, caption or mask in the folder comes, goes or changes; opens no file."""
    every = find(folder, root, nested)
    pictures = [path for found in every for path in found.pictures]
    beside = [path for p in pictures for path in (p, caption_path(p, caption_extension), *masks.mask_files(p))]
    return files_stamp([*beside, *(table for found in every for table in found.tables)])


def refresh_captions(dataset: Dataset) -> Dataset:
    """The dataset with the captions that are on the disk now.

    A dataset on a wire is from the time when its folder was read; captions may have been written since. Every subset reads by
    its own settings, since one picture may be in several; a picture without files on the disk keeps the caption it came with.
    """

    def now(subset: Subset) -> Subset:
        reader = CaptionReader(subset.config)
        samples = (
            s if s.ready else dataclasses.replace(s, caption=caption_now(s.path, reader, s.fallback, subset.class_caption))
            for s in subset.samples
        )
        return dataclasses.replace(subset, samples=tuple(samples))

    return Dataset(tuple(now(subset) for subset in dataset.subsets))
