"""Pictures and films that are brought into a folder, with all that belongs to them: none takes another's place in silence.

What a picture brings along follows it: where ``cat.jpg`` has to be called ``cat (2).jpg``, its caption becomes ``cat (2).txt``,
and so do its masks, its control pictures, and its line in a table of captions.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ..errors import AtelierError
from ..files import full_disk_named, is_inside, parse_json, read_limited, settle, temporary_beside
from . import films, jsonl, unused
from .belonging import PICTURES, Around, Companion, Group, Incoming, Pictures, Sorting, apart, safe
from .images import check_picture
from .names import key
from .words import composed

__all__ = ["MOST", "Brought", "Incoming", "bring"]
MOST = 20_000
"""Files at once."""


@dataclass
class Brought:
    """What became of the files, by the names that the person has for them."""

    new: list[tuple[str, str]] = field(default_factory=list)
    """(name, path below the folder)."""
    there: list[str] = field(default_factory=list)
    """Those that were there already, byte by byte."""
    left: list[tuple[str, str]] = field(default_factory=list)
    """(name, why it was left out)."""


def bring(files: Sequence[Incoming], folder: Path, extension: str = ".txt") -> Brought:
    """Copies the files into the folder; ``extension`` is the ending of its caption files.

    A picture or film goes by its name, made such that every system can have it. Where another one has that name, whatever its
    ending, it gets a number. AtelierError for too many files, and for a folder that cannot be written to.
    """
    if len(files) > MOST:
        raise AtelierError(f"pictures: {len(files)} files at once are too many; {MOST} is the most.")
    bringing = _Bringing(folder)
    sorting = Sorting(files, Around(bringing.pictures, bringing.folders), extension)
    bringing.done.left += sorting.left
    for group in sorting.groups.values():
        bringing.bring(group)
    for table in sorting.tables:
        bringing.table(table)
    settle([folder / path for _, path in bringing.done.new])
    return bringing.done


class _Bringing:
    """One drop of files into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = Brought()
        self.seen: set[tuple[Incoming, Path]] = set()
        """What lies beside pictures, with its place; two pictures of one stem have one such place."""
        self.became: dict[tuple[int, str], str] = {}
        """(choice, path as the person has it) -> path below the folder, of every picture."""
        self._pictures: dict[str, Pictures] = {}

    def pictures(self, below: str) -> Pictures:
        """What lies in a folder below, looked at once."""
        if below not in self._pictures:
            found = [name for name in _names_in(self._place(below)) if os.path.splitext(name)[1].lower() in PICTURES]
            self._pictures[below] = Pictures(found)
        return self._pictures[below]

    def folders(self, below: str) -> list[str]:
        place = self._place(below)
        return [name for name in _names_in(place) if place is not None and (place / name).is_dir()]

    def _place(self, below: str) -> Path | None:
        """None for one that a link leads out of the folder."""
        place = self.folder / below
        return place if is_inside(place, self.folder) else None

    def bring(self, group: Group) -> None:
        """Puts a picture, or several of one stem, into the folder, and beside each what belongs to it."""
        if self._place(group.folder) is None:
            files = [*group.pictures, *(one.file for one in group.companions)]
            self.done.left += [(file.name, unused.LINK_OUT.what) for file in files]
            return
        came = [(key(_name(file)), self._picture(group, file)) for file in group.pictures if self._is_readable(file)]
        if not group.pictures:  # what came without a picture belongs to one that is there
            came = [(key(name), name) for name in self.pictures(group.folder).by_stem.get(key(group.stem), ())]
        owned = [one for name, _ in came for one in _of(group, name)]
        for one in group.companions:
            if one not in owned:
                self.done.left.append((one.file.name, _why_left(one, group, [name for name, _ in came])))
        for name, picture in came:
            for one in _of(group, name):
                self._beside(one.file, self.folder / one.beside(picture))

    def _is_readable(self, file: Incoming) -> bool:
        try:
            films.header(file.source) if films.is_film(Path(_name(file))) else check_picture(file.source)
        except AtelierError as error:
            self.done.left.append((file.name, str(error).removeprefix(f"{file.source}: ")))
            return False
        return True

    def _picture(self, group: Group, file: Incoming) -> str:
        """Puts one picture under the first name that is free, or is its own; gives that name."""
        taken, mine = self.pictures(group.folder), _of(group, key(_name(file)))
        name = self._put(
            file, file.source, group.folder,
            lambda stem, name: key(stem) not in taken.by_stem and not self._meets_others(mine, name),
        )  # fmt: skip
        if key(name) not in taken.whole:
            taken.add(name)
        self.became[file.batch, composed("/".join(file.steps))] = f"{group.folder}/{name}".lstrip("/")
        return name

    def _meets_others(self, companions: Sequence[Companion], name: str) -> bool:
        """Whether, for a picture of this name, captions or masks lie there that are not those which come along."""
        places: dict[Path, list[Path]] = {}
        for one in companions:
            places.setdefault(self.folder / one.beside(name), []).append(one.file.source)
        return any(
            os.path.lexists(place) and not any(_same(source, place) for source in sources) for place, sources in places.items()
        )

    def _put(self, file: Incoming, source: Path, below: str, is_free: Callable[[str, str], bool]) -> str:
        """Puts a file into a folder under the first name that is free, or is its own; gives that name."""
        stem, ending = os.path.splitext(_name(file))
        for number in count(1):
            own = stem if number == 1 else f"{stem} ({number})"
            target = self.folder / below / f"{own}{ending}"
            if os.path.lexists(target):
                if _same(source, target):
                    self.done.there.append(file.name)
                    return target.name
            elif is_free(own, target.name) and _copy(source, target):
                self.done.new.append((file.name, target.relative_to(self.folder).as_posix()))
                return target.name
        raise AssertionError("there is always a higher number")

    def _beside(self, file: Incoming, target: Path) -> None:
        """A caption or mask of a picture that is there; what lies there is never written over."""
        path = target.relative_to(self.folder).as_posix()
        if (file, target) in self.seen:
            return
        self.seen.add((file, target))
        if not is_inside(target.parent, self.folder):
            self.done.left.append((file.name, unused.LINK_OUT.what))
        elif not os.path.lexists(target) and _copy(file.source, target):
            self.done.new.append((file.name, path))
        elif _same(file.source, target):
            self.done.there.append(file.name)
        else:
            self.done.left.append((file.name, f"{path} is there with other contents, and was kept"))

    def table(self, file: Incoming) -> None:
        """A table of captions, whose lines name the pictures as they are called now; to be called when these are there."""
        below = apart(file.path)[0]
        if self._place(below) is None:
            self.done.left.append((file.name, unused.LINK_OUT.what))
            return
        try:
            data = self._renamed(file, below)
        except ValueError as error:
            self.done.left.append((file.name, f"it names pictures that have other names here, and cannot be changed: {error}"))
            return
        with tempfile.TemporaryDirectory() as place:
            source = file.source
            if data is not None:
                source = Path(place) / "table.jsonl"
                source.write_bytes(data)
            self._put(file, source, below, lambda stem, name: True)

    def _renamed(self, file: Incoming, below: str) -> bytes | None:
        """The table with the new names of pictures that came along; None where none of them has one. ValueError: unreadable."""
        own = "/".join(file.steps[:-1])
        now = {
            os.path.relpath(was, own or "."): os.path.relpath(path, below or ".")
            for (batch, was), path in self.became.items() if batch == file.batch
        }  # fmt: skip
        now = {
            was.replace(os.sep, "/"): path.replace(os.sep, "/") for was, path in now.items() if was.replace(os.sep, "/") != path
        }
        if not now:
            return None
        try:
            lines = read_limited(file.source, jsonl.MAX_BYTES).decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError("this is no UTF-8") from error
        changed = [_row(line, now) for line in lines]
        return None if changed == lines else "\n".join(changed).encode()


OF_UNUSED = {
    unused.CAPTION_ALONE: unused.CAPTION_OF_UNUSED, unused.MASK_ALONE: unused.MASK_OF_UNUSED,
    unused.CONTROL_ALONE: unused.CONTROL_OF_UNUSED,
}  # fmt: skip


def _why_left(one: Companion, group: Group, came: Sequence[str]) -> str:
    """Why what belongs to no picture that ``came`` (by their keys) is left out."""
    if any(one.whole in ("", name) for name in came):
        return f"{unused.CONTROL_OF_FILM.what}. {unused.CONTROL_OF_FILM.remedy}"
    return (OF_UNUSED[one.alone] if group.pictures else one.alone).what


def _row(line: str, now: Mapping[str, str]) -> str:
    """A line of a table with its picture's new name."""
    if not line.strip():
        return line
    row = parse_json(line.encode())
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str):
        return line
    path = now.get(composed("/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))))
    return line if path is None else json.dumps({**row, "file_name": path}, ensure_ascii=False)


def _of(group: Group, name: str) -> list[Companion]:
    """What belongs to the picture of this ``key``; what has its whole name comes first. A film has no control pictures."""
    film = films.is_film(Path(name))
    mine = [one for one in group.companions if one.whole in ("", name) and not (film and one.alone is unused.CONTROL_ALONE)]
    return sorted(mine, key=lambda one: one.whole == "")


def _name(file: Incoming) -> str:
    return safe(file.steps[-1])


def _names_in(place: Path | None) -> list[str]:
    try:
        return [] if place is None else os.listdir(place)
    except OSError:
        return []


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _copy(source: Path, target: Path) -> bool:
    """Copies the file, whole or not at all; False if something has taken the name meanwhile."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(target)
        try:
            with full_disk_named(target):
                shutil.copyfile(source, temporary)
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
