"""Reading a folder of pictures: flat, or in kohya's layout of ``N_name`` sub-folders."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..config import SubsetConfig
from ..errors import AtelierError
from .captions import caption_path, read_caption
from .images import EXTENSIONS, check_picture, picture_size
from .samples import Dataset, Sample, Subset
from .stamps import files_stamp

NUMBERED = re.compile(r"(\d+)_(.*)", re.DOTALL)
OTHER_PICTURES = frozenset({".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".psd"}) - EXTENSIONS
MAX_REPEATS = 10_000
# A number above this in a folder's name may be a year.
UNUSUAL_REPEATS = 200
FORMATS = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))


@dataclass(frozen=True)
class Found:
    """One folder's files before any of them is opened."""

    folder: Path
    pictures: tuple[Path, ...]
    repeats: int | None
    """The number before the first ``_`` of the folder's name."""
    class_caption: str | None
    warnings: tuple[str, ...]


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


def _find(folder: Path, root: Path) -> tuple[Found, list[Path]]:
    """The folder's own pictures, and its sub-folders."""
    pictures, folders, warnings = [], [], []
    for entry in _entries(folder):
        suffix = entry.suffix.lower()
        if entry.is_dir():
            folders.append(entry)
        elif suffix in EXTENSIONS:
            _refuse_outside(entry, root)
            pictures.append(entry)
        elif suffix in OTHER_PICTURES:
            warnings.append(f"{entry.name} is not used: its format is not one of {FORMATS}.")
    match = NUMBERED.fullmatch(folder.name)
    repeats, caption = (int(match[1]), match[2].strip() or None) if match else (None, None)
    return Found(folder, tuple(pictures), repeats, caption, tuple(warnings)), folders


def _repeats(found: Found, config: SubsetConfig) -> tuple[int, str | None]:
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


def find(folder: Path, root: Path | None = None) -> tuple[Found, ...]:
    """``folder`` and its ``N_name`` sub-folders, as far as they hold pictures; AtelierError if there is none.

    Links may lead anywhere inside ``root`` (default: the folder itself) and nowhere else.
    """
    inside = (root or folder).resolve()
    _refuse_outside(folder, inside)
    own, below = _find(folder, inside)
    found, ignored = [own], []
    for path in below:
        if NUMBERED.fullmatch(path.name):
            _refuse_outside(path, inside)
            found.append(_find(path, inside)[0])
        elif not path.is_symlink() and any(entry.suffix.lower() in EXTENSIONS for entry in _entries(path)):
            ignored.append(path.name)
    with_pictures = [one for one in found if one.pictures]
    if not with_pictures:
        hint = f" Its sub-folders ({', '.join(ignored[:3])}) have no number in front: choose one of them." if ignored else ""
        other = f" {own.warnings[0]}" if own.warnings else ""
        expected = f"Put pictures ({FORMATS}) there, or into sub-folders named like '10_name'."
        raise AtelierError(f"folder: {folder} has no pictures. {expected}{hint}{other}")
    if ignored:
        note = f"sub-folders without a number in front are not used: {', '.join(ignored)}."
        with_pictures[0] = dataclasses.replace(with_pictures[0], warnings=(*with_pictures[0].warnings, note))
    return tuple(with_pictures)


@lru_cache(maxsize=100_000)
def _probe(path: Path, size: int, mtime_ns: int) -> tuple[int, int, str]:
    """(width, height, SHA-256) of a sound picture; size and time are arguments so that a changed file is read again."""
    del size, mtime_ns
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    check_picture(path)
    return *picture_size(path), digest.hexdigest()


def _sample(path: Path, config: SubsetConfig, class_caption: str | None, root: Path) -> tuple[Sample, str | None]:
    try:
        stat = path.stat()
        width, height, key = _probe(path, stat.st_size, stat.st_mtime_ns)
    except AtelierError:
        raise
    except OSError as error:
        raise AtelierError(f"{path}: this picture cannot be read ({error.strerror}). Allow reading it, or remove it.") from error
    text_file = caption_path(path, config.caption_extension)
    _refuse_outside(text_file, root)
    caption, warning = read_caption(text_file)
    return Sample(path, width, height, class_caption if caption is None else caption, key), warning


def scan(folder: Path, config: SubsetConfig, root: Path | None = None) -> tuple[Subset, ...]:
    """The subsets of a folder, in natural order: its own pictures, then one subset for each ``N_name`` sub-folder.

    Repeats: ``config.repeats`` if above 0, else the number in the folder's name, else 1. A picture's caption is its caption
    file, else the text after the first ``_`` of the folder's name, else None. Raises AtelierError naming the file or folder:
    a missing or empty folder, a broken or too large picture, a link out of ``root`` (default: the folder itself).
    """
    inside = (root or folder).resolve()
    subsets = []
    for found in find(folder, root):
        below = "" if found.folder == folder else f"/{found.folder.name}"
        own = dataclasses.replace(config, folder=config.folder + below)
        pairs = [_sample(path, config, found.class_caption, inside) for path in found.pictures]
        repeats, unusual = _repeats(found, config)
        warnings = tuple(warning for warning in (unusual, *found.warnings, *(warning for _, warning in pairs)) if warning)
        subsets.append(Subset(own, tuple(sample for sample, _ in pairs), repeats, found.class_caption, warnings))
    return tuple(subsets)


def folder_stamp(folder: Path, caption_extension: str = ".txt", root: Path | None = None) -> str:
    """Hex digest that changes when a picture or a caption in the folder comes, goes or changes; opens no file."""
    pictures = [path for found in find(folder, root) for path in found.pictures]
    return files_stamp(path for picture in pictures for path in (picture, caption_path(picture, caption_extension)))


def refresh_captions(dataset: Dataset) -> Dataset:
    """The dataset with the captions that are on the disk now.

    A dataset on a wire is from the time when its folder was read; captions may have been written since.
    """
    captions: dict[Path, str | None] = {}
    for subset in dataset.subsets:
        for sample in subset.samples:
            text, _ = read_caption(caption_path(sample.path, subset.config.caption_extension))
            captions[sample.path] = subset.class_caption if text is None else text
    return dataset.with_captions(captions)
