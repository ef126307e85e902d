"""Pictures that are brought into a folder, with their captions and masks: none takes another's place, and none comes in silence.

What a picture brings along follows it: where ``cat.jpg`` has to be called ``cat (2).jpg``, its caption becomes ``cat (2).txt``.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ..config import CAPTION_ENDINGS, RESERVED
from ..errors import AtelierError
from ..files import full_disk_named, is_inside, settle, shortened, temporary_beside
from . import names, unused
from .images import EXTENSIONS, check_picture
from .names import MASK_FOLDERS, key

MOST = 20_000
"""Files at once."""
LONGEST_NAME = 180
"""Bytes of a file's name without its ending, so that there is room for a number and for the ending of a caption."""
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f\ud800-\udfff]')


@dataclass(frozen=True)
class Incoming:
    """A file that is to be brought in."""

    source: Path
    name: str
    """Its path below the folder as the person has it, with ``/``."""

    @property
    def own_name(self) -> str:
        return _safe(self.name.replace("\\", "/").rpartition("/")[2])


@dataclass
class Brought:
    """What became of the files, by the names that the person has for them."""

    new: list[tuple[str, str]] = field(default_factory=list)
    """(name, path below the folder)."""
    there: list[str] = field(default_factory=list)
    """Those that were there already, byte by byte."""
    left: list[tuple[str, str]] = field(default_factory=list)
    """(name, why it was left out)."""


@dataclass
class _Group:
    """A picture's name, and all that is called after it."""

    folder: str
    stem: str
    pictures: list[Incoming] = field(default_factory=list)
    captions: list[tuple[str, Incoming]] = field(default_factory=list)
    """(the whole name of its picture where the file is called ``cat.jpg.txt``, file)."""
    masks: list[tuple[str, Incoming]] = field(default_factory=list)
    """(path below the folder, with ``{}`` where the picture's stem stands, file)."""


def bring(files: Sequence[Incoming], folder: Path, extension: str = ".txt") -> Brought:
    """Copies the files into the folder; ``extension`` is the ending of its caption files.

    A picture goes by its name, made such that every system can have it. Where another picture has that name, whatever its ending,
    it gets a number. AtelierError for too many files, and for a folder that cannot be written to.
    """
    if len(files) > MOST:
        raise AtelierError(f"pictures: {len(files)} files at once are too many; {MOST} is the most.")
    bringing = _Bringing(folder, extension)
    for group in bringing.groups(files):
        bringing.bring(group)
    settle([folder / path for _, path in bringing.done.new])
    return bringing.done


class _Bringing:
    """One drop of files into one folder."""

    def __init__(self, folder: Path, extension: str) -> None:
        self.folder, self.extension = folder, extension
        self.done = Brought()
        self.seen: set[tuple[Incoming, Path]] = set()
        """What lies beside pictures, with its place; two pictures of one stem have one such place."""

    def groups(self, files: Iterable[Incoming]) -> list[_Group]:
        """What belongs together by its names; what is not used is left out."""
        groups: dict[tuple[str, str], _Group] = {}
        tables: list[_Group] = []
        kept = [(file, path) for file in files if (path := self._path(file))]
        stems = {(_apart(path)[0], key(_apart(path)[1])) for _, path in kept if _apart(path)[2] in EXTENSIONS}
        for file, path in kept:
            around, stem, ending = _apart(path)
            if ending in EXTENSIONS:
                place, owner, pattern = _as_mask(around, stem, ending, stems)
                group = groups.setdefault((place, key(owner)), _Group(place, owner))
                if why := _unreadable(file):
                    self.done.left.append((file.name, why))
                elif pattern:
                    group.masks.append((pattern, file))
                else:
                    group.pictures.append(file)
            elif ending in (self.extension.lower(), *CAPTION_ENDINGS):
                bare, inner = os.path.splitext(stem)
                whole = inner.lower() in EXTENSIONS
                group = groups.setdefault((around, key(bare if whole else stem)), _Group(around, bare if whole else stem))
                group.captions.append((key(stem) if whole else "", file))
            elif ending == ".jsonl":
                tables.append(_Group(around, stem, [file]))
            else:
                reason = names.left_over(ending)
                self.done.left.append((file.name, f"{reason.what}. {reason.remedy}".strip()))
        return [*groups.values(), *tables]

    def _path(self, file: Incoming) -> str | None:
        """Where the file belongs below the folder; None if its name says that it is not used."""
        parts = [part for part in file.name.replace("\\", "/").split("/") if part not in ("", ".")]
        why = unused.HIDDEN if not parts or ".." in parts else next(filter(None, map(names.passed_over, parts)), None)
        if why is not None and why is not unused.NOT_UTF8:
            self.done.left.append((file.name, why.what))
            return None
        return "/".join(map(_safe, parts))

    def bring(self, group: _Group) -> None:
        """Puts a picture, or several of one stem, into the folder, and beside each what belongs to it."""
        place = self.folder.joinpath(*group.folder.split("/")) if group.folder else self.folder
        if not is_inside(place, self.folder):
            files = [*group.pictures, *(file for _, file in group.captions), *(file for _, file in group.masks)]
            self.done.left += [(file.name, unused.LINK_OUT.what) for file in files]
            return
        stems = [(key(file.own_name), self._picture(group, file, place)) for file in group.pictures]
        if not stems:  # what came without a picture belongs to one that is there
            stems = [(key(path.name), path.stem) for path in _pictures_in(place) if key(path.stem) == key(group.stem)]
        owned = {"", *(name for name, _ in stems)} if stems else set()
        self.done.left += [(file.name, unused.CAPTION_ALONE.what) for whole, file in group.captions if whole not in owned]
        self.done.left += [(file.name, unused.MASK_ALONE.what) for _, file in group.masks if not stems]
        for name, stem in stems:
            captions = [(whole, file) for whole, file in group.captions if whole in ("", name)]
            for _, file in sorted(captions, key=lambda one: one[0] == ""):
                ending = os.path.splitext(file.own_name)[1]
                own = self.extension if ending.lower() == self.extension.lower() else ending
                self._beside(file, place / f"{stem}{own}")
            for pattern, file in group.masks:
                self._beside(file, self.folder / pattern.format(stem))

    def _picture(self, group: _Group, file: Incoming, place: Path) -> str:
        """Puts one picture under the first name that is free, or is its own; gives the stem of that name."""
        stem, ending = os.path.splitext(file.own_name)
        taken = {key(path.stem) for path in _pictures_in(place)} if ending.lower() in EXTENSIONS else set()
        for number in count(1):
            name = stem if number == 1 else f"{stem} ({number})"
            target = place / f"{name}{ending}"
            if os.path.lexists(target):
                if _same(file.source, target):
                    self.done.there.append(file.name)
                    return name
            elif key(name) not in taken and not self._has_another_caption(group, file, place / name) and _put(file, target):
                self.done.new.append((file.name, target.relative_to(self.folder).as_posix()))
                return name
        raise AssertionError("there is always a higher number")

    def _has_another_caption(self, group: _Group, picture: Incoming, bare: Path) -> bool:
        """Whether a caption lies there that is not the one which comes along."""
        there = bare.with_name(bare.name + self.extension)
        mine = [
            file for whole, file in group.captions
            if whole in ("", key(picture.own_name)) and _apart(file.name)[2] == self.extension.lower()
        ]  # fmt: skip
        return bool(mine) and os.path.lexists(there) and not _same(mine[0].source, there)

    def _beside(self, file: Incoming, target: Path) -> None:
        """A caption or mask of a picture that is there; what lies there is never written over."""
        path = target.relative_to(self.folder).as_posix()
        if (file, target) in self.seen:
            return
        self.seen.add((file, target))
        if not is_inside(target.parent, self.folder):
            self.done.left.append((file.name, unused.LINK_OUT.what))
        elif not os.path.lexists(target) and _put(file, target):
            self.done.new.append((file.name, path))
        elif _same(file.source, target):
            self.done.there.append(file.name)
        else:
            self.done.left.append((file.name, f"{path} is there with other contents, and was kept"))


def _safe(part: str) -> str:
    """A name that every system can have, as near to ``part`` as that goes."""
    stem, ending = os.path.splitext(FORBIDDEN.sub("_", part))
    stem, ending = shortened(stem, LONGEST_NAME).strip(" "), shortened(ending, 20).rstrip(" .")
    stem = stem if ending else stem.rstrip(" .")
    return (f"{stem}_" if not stem or stem.split(".")[0].lower() in RESERVED else stem) + ending


def _apart(path: str) -> tuple[str, str, str]:
    """(folder, stem, ending in lower case)."""
    around, _, name = path.rpartition("/")
    stem, ending = os.path.splitext(name)
    return around, stem, ending.lower()


def _as_mask(around: str, stem: str, ending: str, stems: Collection[tuple[str, str]]) -> tuple[str, str, str]:
    """(folder of the picture, its stem, pattern of the mask's path); the pattern is empty for a picture of its own."""
    above, _, last = around.rpartition("/")
    kind, owner, sure = names.mark(stem)
    if last.casefold() in MASK_FOLDERS:
        owner = owner if kind == "mask" else stem
        return above, owner, f"{_literal(around)}/{_pattern(stem, owner)}{ending}"
    if kind == "mask" and (sure or (around, key(owner)) in stems):
        return around, owner, f"{_literal(around)}/{_pattern(stem, owner)}{ending}".lstrip("/")
    return around, stem, ""


def _pattern(stem: str, owner: str) -> str:
    before, _, behind = stem.partition(owner)
    return f"{_literal(before)}{{}}{_literal(behind)}"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _unreadable(file: Incoming) -> str:
    try:
        check_picture(file.source)
    except AtelierError as error:
        return str(error).removeprefix(f"{file.source}: ")
    return ""


def _pictures_in(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.suffix.lower() in EXTENSIONS]
    except OSError:
        return []


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _put(file: Incoming, target: Path) -> bool:
    """Copies the file, whole or not at all; False if something has taken the name meanwhile."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(target)
        try:
            with full_disk_named(target):
                shutil.copyfile(file.source, temporary)
            try:
                os.link(temporary, target)  # unlike a renaming it takes no other file's place
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                if os.path.lexists(target):
                    return False
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise AtelierError(f"folder: {target} cannot be written ({error.strerror}). Allow writing in this folder.") from error
    return True
