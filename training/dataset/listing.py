"""One folder's files by what their names say: pictures, captions, masks, tables, and what is not used. No file is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AtelierError
from ..files import is_inside
from . import names, unused
from .caption_names import captions_by_picture, has_whole_name, shared_stems
from .captions import caption_file_of
from .films import ENDINGS, is_film
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
    further: Mapping[Path, Mapping[str, Path]] = field(default_factory=dict)
    """What may be further captions, by picture and by the ``key`` of the ending (``.short.txt``, ``.json``)."""
    seconds: Mapping[Path, tuple[Path, ...]] = field(default_factory=dict)
    """Second captions, masks and control pictures by picture, which would count if the first were not there."""
    guessed: tuple[Path, ...] = ()
    """Those masks whose names other pictures may have as well (``cat_mask.png``)."""
    warnings: tuple[str, ...] = ()
    unused: Unused = ()

    def drawn_for(self, picture: Path) -> tuple[Path, ...]:
        """Every mask and control picture of a picture, also those that are not used."""
        mask = self.masks.get(picture)
        found = [*([mask] if mask else []), *self.controls.get(picture, ()), *self.seconds.get(picture, ())]
        return tuple(path for path in found if path.suffix.lower() in EXTENSIONS)

    def of(self, picture: Path, extension: str) -> tuple[Path, ...]:
        """A picture and everything that belongs to it and is there; another picture may have some of it as well."""
        captions = [
            caption_file_of(picture, extension, self.captions.get(picture)), *self.further.get(picture, {}).values(),
            *self.seconds.get(picture, ()),
        ]  # fmt: skip
        return tuple(dict.fromkeys(p for p in (picture, *captions, *self.drawn_for(picture)) if os.path.lexists(p)))


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


def holds_pictures(folder: Path, films: bool = False) -> bool:
    """Whether a picture, or with ``films`` a film, lies anywhere below; links are not followed; what cannot be read has none."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    if names.passed_over(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif os.path.splitext(entry.name)[1].lower() in (EXTENSIONS | ENDINGS if films else EXTENSIONS):
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


def look(
    folder: Path, root: Path, extension: str, elsewhere: Companions = NOBODY, films: bool = False
) -> tuple[FoundFolder, list[Path]]:  # fmt: skip
    """The folder's own files, and its sub-folders as far as they are neither masks nor control pictures of those files.

    ``extension``: ending of caption files. ``films``: whether films count as pictures.
    """
    files, folders, passed = _sorted(folder)
    endings = EXTENSIONS | ENDINGS if films else EXTENSIONS
    images = [file for file in files if file.suffix.lower() in endings]
    for file in (one for one in files if one.suffix.lower() in (*endings, ".jsonl")):
        refuse_outside(file, root)
    pictures, masks, controls, lookalikes = _by_mark(images)
    folders, beside = _companions(folders, pictures, root, passed)
    inside = [one for folder in (*beside.masks, *elsewhere.masks) for one in _in_masks(folder, passed)]
    seconds: dict[Path, list[Path]] = {}
    pairs, guessed = _masks_of(pictures, [*masks, *inside], passed, seconds)
    numbered = [((0, names.control_number(file.stem)), names.mark(file.stem)[1], file) for file in controls]
    for number, one in (*beside.controls, *elsewhere.controls):
        numbered += _in_controls(one, number, pictures, passed)
    shown = _controls_of(pictures, numbered, passed, seconds)
    further: dict[Path, dict[str, Path]] = {}
    captions = captions_by_picture(pictures, files, extension, passed, seconds, further)
    tables = tuple(file for file in files if file.suffix.lower() == ".jsonl")
    match = names.NUMBERED.fullmatch(folder.name)
    repeats, caption = (int(match[1]), match[2].strip() or None) if match else (None, None)
    warnings = [
        *shared_stems([p for p in pictures if p in pairs or p not in captions or not has_whole_name(captions[p], p)]),
        *(
            [f"named like masks, but trained on, as no picture has the rest of the name: {some(lookalikes)}."]
            if lookalikes else []
        ),
    ]  # fmt: skip
    return FoundFolder(
        folder, tuple(pictures), repeats, caption, tables, captions, pairs, shown, further,
        {picture: tuple(others) for picture, others in seconds.items()}, guessed, tuple(warnings), tuple(passed),
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
        if kind and (sure or key(stem) in stems) and not is_film(file):
            if kind == "mask":
                masks.append((stem, file, sure))
            else:
                controls.append(file)
            continue
        pictures.append(file)
        if kind == "mask" and not is_film(file):
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
            others.append((_beside(path), path))
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
    pictures: Sequence[Path], controls: Iterable[tuple[tuple[int, int], str, Path]], passed: list[tuple[Reason, Path]],
    seconds: dict[Path, list[Path]],
) -> dict[Path, tuple[Path, ...]]:  # fmt: skip
    """Control pictures by picture, those of folders after those beside it, each in the order of its number."""
    by_stem: dict[str, dict[tuple[int, int], Path]] = {}
    others: dict[str, list[Path]] = {}
    known = _known(pictures)
    for place, stem, path in controls:
        if key(stem) not in known:
            passed.append((unused.CONTROL_ALONE, path))
        elif by_stem.setdefault(key(stem), {}).setdefault(place, path) != path:
            passed.append((unused.CONTROL_TWICE, path))
            others.setdefault(key(stem), []).append(path)
    found = {}
    for picture in pictures:
        every = [path for part in (picture.stem, picture.name) for path in by_stem.get(key(part), {}).values()]
        more = [path for part in (picture.stem, picture.name) for path in others.get(key(part), ())]
        own = {**by_stem.get(key(picture.stem), {}), **by_stem.get(key(picture.name), {})}
        if own:
            found[picture] = tuple(own[place] for place in sorted(own))
        if hidden := [*(path for path in every if path not in own.values()), *more]:
            seconds.setdefault(picture, []).extend(hidden)
    return found


def _beside(path: Path) -> Reason:
    """Why a file among masks or control pictures is not used."""
    ending = path.suffix.lower()
    return unused.FILM_BESIDE if ending in ENDINGS else names.left_over(ending)


def _in_masks(folder: Path, passed: list[tuple[Reason, Path]]) -> list[tuple[str, Path, bool]]:
    """The pictures in a folder of masks, as (stem of the picture that each belongs to, file, sure)."""
    found = []
    files, folders, others = _sorted(folder)
    for path in files:
        if path.suffix.lower() in EXTENSIONS:
            kind, stem, _ = names.mark(path.stem)
            found.append((stem if kind == "mask" else path.stem, path, True))
        else:
            others.append((_beside(path), path))
    passed += [*others, *((unused.MASK_ALONE, path) for path in folders)]
    return found


def _masks_of(
    pictures: Sequence[Path], masks: Sequence[tuple[str, Path, bool]], passed: list[tuple[Reason, Path]],
    seconds: dict[Path, list[Path]],
) -> tuple[dict[Path, Path], tuple[Path, ...]]:  # fmt: skip
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
        if len(candidates) > 1:
            seconds.setdefault(picture, []).extend(path for _, path, _ in candidates if path != pairs[picture])
    chosen = set(pairs.values())
    for _, path, _ in masks:
        if path not in chosen:
            passed.append((unused.MASK_TWICE if path in belonging else unused.MASK_ALONE, path))
    return pairs, tuple(path for _, path, sure in masks if path in chosen and not sure)
