"""One folder's files by what their names say: pictures, captions, masks, tables, and what is not used. No file is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AtelierError
from ..files import is_inside
from . import names, unused
from .captions import caption_path
from .images import EXTENSIONS
from .names import key, natural_key
from .samples import some
from .unused import Reason, Unused


@dataclass(frozen=True)
class FoundFolder:
    """One folder's files before any of them is opened."""

    folder: Path
    pictures: tuple[Path, ...]
    repeats: int | None
    """The number before the first ``_`` of the folder's name."""
    class_caption: str | None
    tables: tuple[Path, ...] = ()
    """``.jsonl`` files with captions."""
    captions: Mapping[Path, Path] = field(default_factory=dict)
    """Caption files under other names than the usual one, by picture (``cat.TXT``, ``cat.jpg.txt``); not there yet for a picture
    whose usual one would take the place of another picture's."""
    masks: Mapping[Path, Path] = field(default_factory=dict)
    """Mask files by picture."""
    controls: Mapping[Path, tuple[Path, ...]] = field(default_factory=dict)
    """Control pictures by picture, in their order."""
    guessed: tuple[Path, ...] = ()
    """Those masks whose names other pictures may have as well (``cat_mask.png``)."""
    warnings: tuple[str, ...] = ()
    unused: Unused = ()


def leads_outside(path: Path, root: Path) -> bool:
    """Whether the path is a link out of ``root``, which is resolved."""
    return os.path.islink(path) and not is_inside(path, root)


def refuse_outside(path: Path, root: Path) -> None:
    """A link in a shared folder must not pull in files from elsewhere on this computer."""
    if leads_outside(path, root):
        raise AtelierError(f"{path}: this is a link that leads out of {root}. Copy the file into the folder instead.")


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Everything in the folder, in natural order; AtelierError naming a folder that cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: natural_key(entry.name))
    except FileNotFoundError as error:
        raise AtelierError(f"folder: {folder} does not exist. Choose another one, or put the pictures there.") from error
    except NotADirectoryError as error:
        raise AtelierError(f"folder: {folder} is a file. Choose the folder around it.") from error
    except OSError as error:
        raise AtelierError(f"folder: {folder} cannot be read ({error.strerror}). Allow reading it.") from error


def holds_pictures(folder: Path) -> bool:
    """Whether a picture lies anywhere below; links are not followed, and what cannot be read holds none."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    if names.passed_over(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                        return True
        except OSError:
            continue
    return False


@dataclass(frozen=True)
class Companions:
    """Folders elsewhere that belong to a folder's pictures."""

    masks: tuple[Path, ...] = ()
    controls: tuple[tuple[int, Path], ...] = ()
    """With the number that each has."""


NOBODY = Companions()


def look(folder: Path, root: Path, extension: str, elsewhere: Companions = NOBODY) -> tuple[FoundFolder, list[Path]]:
    """The folder's own files, and its sub-folders as far as they are neither masks nor control pictures of those files.

    ``extension``: ending of caption files.
    """
    files, folders, passed = _sorted(folder)
    images = [file for file in files if file.suffix.lower() in EXTENSIONS]
    for file in (one for one in files if one.suffix.lower() in (*EXTENSIONS, ".jsonl")):
        refuse_outside(file, root)
    pictures, masks, controls, lookalikes = _by_mark(images)
    folders, beside = _companions(folders, pictures, root, passed)
    inside = [one for folder in (*beside.masks, *elsewhere.masks) for one in _in_masks(folder, passed)]
    pairs, guessed = _masks_of(pictures, [*masks, *inside], passed)
    numbered = [((0, names.control_number(file.stem)), names.mark(file.stem)[1], file) for file in controls]
    for number, one in (*beside.controls, *elsewhere.controls):
        numbered += _in_controls(one, number, pictures, passed)
    shown = _controls_of(pictures, numbered, passed)
    captions = _captions(pictures, files, extension, passed)
    tables = tuple(file for file in files if file.suffix.lower() == ".jsonl")
    match = names.NUMBERED.fullmatch(folder.name)
    repeats, caption = (int(match[1]), match[2].strip() or None) if match else (None, None)
    warnings = [
        *_shared_stems([p for p in pictures if p in pairs or p not in captions or not _has_whole_name(captions[p], p)]),
        *(
            [f"named like masks, but trained on, as no picture has the rest of the name: {some(lookalikes)}."]
            if lookalikes else []
        ),
    ]  # fmt: skip
    return FoundFolder(
        folder, tuple(pictures), repeats, caption, tables, captions, pairs, shown, guessed, tuple(warnings), tuple(passed)
    ), folders  # fmt: skip


def _sorted(folder: Path) -> tuple[list[Path], list[Path], list[tuple[Reason, Path]]]:
    """(files, folders, what is passed over by its name or kind)."""
    files, folders, passed = [], [], []
    for entry in entries(folder):
        path = Path(entry.path)
        if reason := names.passed_over(entry.name):
            passed.append((reason, path))
        elif entry.is_dir():
            folders.append(path)
        elif entry.is_file() or entry.is_symlink():
            files.append(path)
        else:
            passed.append((unused.SPECIAL, path))
    return files, folders, passed


def _by_mark(images: Sequence[Path]) -> tuple[list[Path], list[tuple[str, Path, bool]], list[Path], list[str]]:
    """(pictures, masks as (stem of the picture, file, sure), control pictures, names of pictures that only look like masks)."""
    pictures, masks, controls, lookalikes = [], [], [], []
    stems = {key(file.stem) for file in images}
    for file in images:
        kind, stem, sure = names.mark(file.stem)
        if kind and (sure or key(stem) in stems):
            if kind == "mask":
                masks.append((stem, file, sure))
            else:
                controls.append(file)
            continue
        pictures.append(file)
        if kind == "mask":
            lookalikes.append(file.name)
    return pictures, sorted(masks, key=lambda one: not one[2]), controls, lookalikes


def _companions(
    folders: Iterable[Path], pictures: Sequence[Path], root: Path, passed: list[tuple[Reason, Path]]
) -> tuple[list[Path], Companions]:  # fmt: skip
    """(other folders, those with masks and control pictures), which have a picture of the same name as one of the pictures."""
    others, masks, controls = [], [], []
    for folder in folders:
        is_masks, number = folder.name.casefold() in names.MASK_FOLDERS, names.control_folder(folder.name)
        if not is_masks and number is None:
            others.append(folder)
        elif leads_outside(folder, root):
            passed.append((unused.LINK_OUT, folder))
        elif is_masks and _belongs(pictures, (stem for stem, _, _ in _in_masks(folder, []))):
            masks.append(folder)
        elif number is not None and pictures:
            controls.append((number, folder))
        else:
            others.append(folder)
    return others, Companions(tuple(masks), tuple(controls))


def _known(pictures: Sequence[Path]) -> set[str]:
    return {key(part) for picture in pictures for part in (picture.stem, picture.name)}


def _belongs(pictures: Sequence[Path], stems: Iterable[str]) -> bool:
    known = _known(pictures)
    return any(key(stem) in known for stem in stems)


def _in_controls(
    folder: Path, number: int, pictures: Sequence[Path], passed: list[tuple[Reason, Path]]
) -> list[tuple[tuple[int, int], str, Path]]:  # fmt: skip
    """The pictures in a folder of control pictures, as (place among those of their picture, its stem, file)."""
    found = []
    files, folders, others = _sorted(folder)
    known = _known(pictures)
    for path in files:
        if path.suffix.lower() not in EXTENSIONS:
            others.append((names.left_over(path.suffix.lower()), path))
            continue
        kind, stem, _ = names.mark(path.stem)
        another = names.ANOTHER.fullmatch(path.stem)
        if key(path.stem) in known:
            found.append(((number, 0), path.stem, path))
        elif another and key(another[1]) in known:
            found.append(((number, int(another[2])), another[1], path))
        else:
            own = (number, names.control_number(path.stem))
            found.append((own, stem if kind == "control" else path.stem, path))
    passed += [*others, *((unused.CONTROL_ALONE, path) for path in folders)]
    return found


def _controls_of(
    pictures: Sequence[Path], controls: Iterable[tuple[tuple[int, int], str, Path]], passed: list[tuple[Reason, Path]]
) -> dict[Path, tuple[Path, ...]]:  # fmt: skip
    """Control pictures by picture, those of folders after those beside it, each in the order of its number."""
    by_stem: dict[str, dict[tuple[int, int], Path]] = {}
    known = _known(pictures)
    for place, stem, path in controls:
        if key(stem) not in known:
            passed.append((unused.CONTROL_ALONE, path))
        elif by_stem.setdefault(key(stem), {}).setdefault(place, path) != path:
            passed.append((unused.CONTROL_TWICE, path))
    found = {}
    for picture in pictures:
        own = {**by_stem.get(key(picture.stem), {}), **by_stem.get(key(picture.name), {})}
        if own:
            found[picture] = tuple(own[place] for place in sorted(own))
    return found


def _in_masks(folder: Path, passed: list[tuple[Reason, Path]]) -> list[tuple[str, Path, bool]]:
    """The pictures in a folder of masks, as (stem of the picture that each belongs to, file, sure)."""
    found = []
    files, folders, others = _sorted(folder)
    for path in files:
        if path.suffix.lower() in EXTENSIONS:
            kind, stem, _ = names.mark(path.stem)
            found.append((stem if kind == "mask" else path.stem, path, True))
        else:
            others.append((names.left_over(path.suffix.lower()), path))
    passed += [*others, *((unused.MASK_ALONE, path) for path in folders)]
    return found


def _masks_of(
    pictures: Sequence[Path], masks: Sequence[tuple[str, Path, bool]], passed: list[tuple[Reason, Path]]
) -> tuple[dict[Path, Path], tuple[Path, ...]]:
    """(mask by picture, masks that were told by a name which a picture may have as well); the first in order counts."""
    by_stem: dict[str, list[tuple[str, Path, bool]]] = {}
    for one in masks:
        by_stem.setdefault(key(one[0]), []).append(one)
    pairs: dict[Path, Path] = {}
    belonging: set[Path] = set()
    for picture in pictures:
        candidates = [*by_stem.get(key(picture.stem), ()), *by_stem.get(key(picture.name), ())]
        belonging |= {path for _, path, _ in candidates}
        if candidates:
            pairs[picture] = min(candidates, key=lambda one: one[0] not in (picture.stem, picture.name))[1]
    chosen = set(pairs.values())
    for _, path, _ in masks:
        if path not in chosen:
            passed.append((unused.MASK_TWICE if path in belonging else unused.MASK_ALONE, path))
    return pairs, tuple(path for _, path, sure in masks if path in chosen and not sure)


def _captions(
    pictures: Sequence[Path], files: Sequence[Path], extension: str, passed: list[tuple[Reason, Path]]
) -> dict[Path, Path]:  # fmt: skip
    """Caption files under other names, by picture; what is neither caption, picture nor table is passed over."""
    ending = extension.lower()
    texts = [file for file in files if file.name.lower().endswith(ending) and len(file.name) > len(ending)]
    exact = {caption_path(picture, extension) for picture in pictures}.intersection(texts)
    spare: dict[str, Path] = {}
    for file in texts:
        if file not in exact:
            spare.setdefault(key(file.name[: -len(ending)]), file)
    others = {}
    for picture in pictures:
        if found := spare.get(key(picture.stem)) or spare.get(key(picture.name)):
            others[picture] = found
    without = {picture for picture in pictures if caption_path(picture, extension) not in exact}
    taken = exact | {file for picture, file in others.items() if picture in without}
    complete = without <= others.keys()
    known = {key(part) for picture in pictures for part in (picture.stem, picture.name)}
    unread = {key(n) for f in files if f.suffix.lower() in names.PICTURE_LIKE for n in (f.stem, f.name)} - known
    for file in files:
        suffix, stem = file.suffix.lower(), key(file.stem)
        if file in taken or suffix in EXTENSIONS or suffix == ".jsonl":
            continue
        if file in texts:
            twice = key(file.name[: -len(ending)]) in known
            reason = unused.CAPTION_TWICE if twice else unused.CAPTION_OF_UNUSED if stem in unread else unused.CAPTION_ALONE
        elif suffix in names.CAPTION_ENDINGS and stem in known:
            reason = unused.other_captions(file.suffix, complete)
        elif suffix in names.TABLE_ENDINGS:
            reason = unused.tables(suffix, complete)
        else:
            reason = names.left_over(suffix)
        passed.append((reason, file))
    apart = {key(picture.stem) for picture in without & others.keys() if _has_whole_name(others[picture], picture)}
    for picture in without - others.keys():
        if key(picture.stem) in apart:
            others[picture] = picture.with_name(picture.name + extension)
    return others


def _has_whole_name(caption: Path, picture: Path) -> bool:
    """Whether the caption file is ``cat.jpg.txt`` rather than ``cat.TXT``."""
    return key(caption.name).startswith(f"{key(picture.name)}.")


def _shared_stems(pictures: Sequence[Path]) -> list[str]:
    """The sentence that names pictures whose caption and mask are one file, here or on systems that ignore case."""
    groups: dict[str, list[str]] = {}
    for picture in pictures:
        groups.setdefault(key(picture.stem), []).append(picture.name)
    pairs = [" and ".join(group) for group in groups.values() if len(group) > 1]
    if not pairs:
        return []
    return [f"pictures with one name share one caption file and one mask: {some(pairs)}. Rename one of each to tell them apart."]
