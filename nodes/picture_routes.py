"""What the page asks of pictures as files: bringing them into a folder, what was drawn here, taking out, putting back, turning.

Every function takes plain JSON values and gives such back.
"""

from __future__ import annotations

import heapq
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..training import host
from ..training.config import SubsetConfig
from ..training.dataset import put_aside, turning
from ..training.dataset.belonging import useless
from ..training.dataset.films import is_film
from ..training.dataset.folders import folder_to_fill
from ..training.dataset.incoming import MOST, Incoming, bring
from ..training.errors import AtelierError
from ..training.files import is_inside
from .caption_routes import SHOWN, WHERE, config_of, is_plain, place_of, wrong

_brought: dict[str, float] = {}
"""Files that were brought into folders since the server was started, and when that began."""
CLOCKS = 2.0
"""Seconds by which a drive's clock, or what it keeps of a time, may be behind."""
STAGED = "lora-atelier-incoming"
"""Folder inside the host's temp folder, into which the page uploads through the host; each drop has a folder of its own there."""
PLACE = re.compile(r"[0-9a-f]{16}")
"""The name of such a folder."""
LISTED = 500
"""Pictures of the output folder that are offered, the newest."""
LOOKED_AT = 100_000
"""Files of the output folder after which no further folder is looked into for that."""


def add(body: Mapping[str, Any]) -> dict[str, Any]:
    """Brings files that the host holds (uploaded, or drawn here) into a dataset's folder, which is made if it is new.

    ``files``: objects with ``name``, as the person has it, the host's ``filename``, ``subfolder`` and ``type``, and ``batch``,
    the number of the choice with which it came (none: all came with one). Answers with the folder's name, what is ``new``, what
    was ``there`` and what was ``left``, with its reason, and which of the new ones are ``films``. With ``names`` nothing is
    brought: ``left`` are those of them that need not be sent, and ``most`` the bytes that the host takes of one file.
    """
    files, extension = body.get("files"), body.get("extension", ".txt")
    if not isinstance(files, list) or len(files) > MOST or not all(isinstance(file, dict) for file in files):
        raise wrong("files", f"a list of at most {MOST} objects")
    name, folder = folder_to_fill(_text(body, "folder"), host.dataset_roots())
    config = config_of({"folder": name, "caption_extension": extension})
    if "names" in body:
        left = _useless(body["names"], config.caption_extension)
        return {"folder": name, "new": [], "there": [], "left": left, "most": host.upload_limit()}
    incoming = [Incoming(_held(file), _text(file, "name", 4000), _batch(file)) for file in files]
    begun = time.time()
    with _cleared(incoming):
        done = bring(incoming, folder, config.caption_extension)
    _brought.update((_place_on_disk(folder, path), begun) for _, path in done.new)
    films = [path for _, path in done.new if is_film(Path(path))]
    return {"folder": name, "new": done.new, "there": done.there, "left": done.left, "films": films}


def _place_on_disk(folder: Path, name: str) -> str:
    return os.path.abspath(folder / name)


def _useless(named: Any, extension: str) -> list[tuple[str, str]]:
    if not isinstance(named, list) or not all(isinstance(name, str) and 0 < len(name) <= 4000 for name in named):
        raise wrong("names", "a list of names")
    if len(named) > MOST:
        raise AtelierError(f"pictures: {len(named)} files at once are too many; {MOST} is the most.")
    return [(name, why) for name in dict.fromkeys(named) if (why := useless(name, extension))]


def forget(body: Mapping[str, Any]) -> dict[str, Any]:
    """Removes what a drop has sent that was ended; ``place`` is the name of its folder."""
    place = body.get("place")
    if not isinstance(place, str) or not PLACE.fullmatch(place):
        raise wrong("place", "16 digits of a number")
    shutil.rmtree(host.temp_folder() / STAGED / place, ignore_errors=True)
    return {}


@contextmanager
def _cleared(files: list[Incoming]) -> Iterator[None]:
    """What was staged is removed, however the block ends."""
    top = host.temp_folder() / STAGED
    try:
        yield
    finally:
        for folder in {file.source.parent for file in files if file.source.parent.parent == top}:
            shutil.rmtree(folder, ignore_errors=True)


def made() -> dict[str, Any]:
    """The newest pictures and films in the host's output folder, as the host finds them; the runs' own are left out.

    ``more``: how many older ones there are; ``unseen`` says whether there were too many files to look into every folder.
    """
    top = host.output_folder()
    pictures = _Drawn()
    newest = heapq.nlargest(LISTED, pictures.below(top))
    return {
        "pictures": [{**host.shown_picture(path), "film": is_film(path)} for _, path in newest if is_inside(path, top)],
        "more": pictures.count - len(newest), "unseen": bool(pictures.waiting),
    }  # fmt: skip


class _Drawn:
    """A look through the output folder."""

    def __init__(self) -> None:
        self.looked = 0
        """Files that were come across; beyond ``LOOKED_AT`` no further folder is opened."""
        self.count = 0
        self.waiting: list[str] = []
        """Folders that were not looked into."""

    def below(self, top: Path) -> Iterator[tuple[float, Path]]:
        """(time of its last change, path) of every picture, folder by folder."""
        runs, self.waiting = str(host.runs_folder()), [str(top)]
        while self.waiting and self.looked <= LOOKED_AT:
            try:
                with os.scandir(self.waiting.pop()) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            self.waiting += [entry.path] if entry.path != runs else []
                            continue
                        self.looked += 1
                        if os.path.splitext(entry.name)[1].lower() in SHOWN:
                            with suppress(OSError):
                                yield entry.stat().st_mtime, Path(entry.path)
                                self.count += 1
            except OSError:  # it cannot be read, or has gone
                continue


def remove(body: Mapping[str, Any]) -> dict[str, Any]:
    """Puts pictures of a folder aside; ``entry`` is what puts them back."""
    folder, root, config = _place(body)
    return {"entry": put_aside.remove(folder, _names(body), config, root)}


def take_back(body: Mapping[str, Any]) -> dict[str, Any]:
    """Puts aside what ``add`` has brought (``files``: its ``new`` paths); ``entry`` is what puts that back.

    What it has not brought since the server was started is none of its business.
    """
    folder, root, config = _place(body)
    came = {name: since for name in _names(body, "files") if (since := _brought.get(_place_on_disk(folder, name))) is not None}
    if not came:
        raise AtelierError(f"pictures: what had come into {folder.name} is not known any more. Take it out one by one.")
    return {"entry": put_aside.take_back(folder, list(came), config, root, min(came.values()) - CLOCKS)}


def restore(body: Mapping[str, Any]) -> dict[str, Any]:
    """Puts back what ``remove`` took away."""
    folder, root, _ = _place(body)
    return {"files": put_aside.restore(folder, _text(body, "entry"), root)}


def turn(body: Mapping[str, Any]) -> dict[str, Any]:
    """Turns pictures of a folder clockwise by so many ``quarters``."""
    quarters = body.get("quarters")
    if type(quarters) is not int or quarters not in (1, 2, 3):
        raise wrong("quarters", "1, 2 or 3")
    folder, root, config = _place(body)
    turning.turn(folder, _names(body), quarters, config, root)
    return {}


FIELDS = ("extension", *WHERE)
POSTS = {
    "pictures/add": (add, ("folder", "extension", "files", "names")),
    "pictures/forget": (forget, ("place",)),
    "pictures/remove": (remove, (*FIELDS, "pictures")),
    "pictures/take_back": (take_back, (*FIELDS, "files")),
    "pictures/restore": (restore, (*FIELDS, "entry")),
    "pictures/turn": (turn, (*FIELDS, "pictures", "quarters")),
}
"""What answers to which path, and the fields that it takes."""


def _place(body: Mapping[str, Any]) -> tuple[Path, Path, SubsetConfig]:
    """(folder, its root, the settings that say which pictures there are)."""
    widgets = {"extension": "caption_extension", **WHERE}
    config = config_of({widget: body[field] for field, widget in widgets.items() if field in body})
    return *place_of(config.folder), config


def _names(body: Mapping[str, Any], field: str = "pictures") -> list[str]:
    names = body.get(field)
    if not isinstance(names, list) or not 0 < len(names) <= MOST or not all(isinstance(n, str) and is_plain(n) for n in names):
        raise wrong(field, "a list of names")
    return names


def _text(values: Mapping[str, Any], field: str, longest: int = 1000) -> str:
    value = values.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= longest or "\0" in value:
        raise wrong(field, f"a text of at most {longest} letters")
    return value


def _batch(file: Mapping[str, Any]) -> int:
    number = file.get("batch", 0)
    if type(number) is not int or not 0 <= number <= MOST:
        raise wrong("files", f"objects whose batch is a number from 0 to {MOST}")
    return number


def _held(file: Mapping[str, Any]) -> Path:
    """The file of the host's that is meant; AtelierError for any that lies outside the host's folders."""
    kind, below = file.get("type"), file.get("subfolder", "")
    roots = {"input": host.dataset_roots()["input"], "output": host.output_folder(), "temp": host.temp_folder()}
    if not isinstance(kind, str) or kind not in roots or not isinstance(below, str) or len(below) > 1000:
        raise wrong("files", "objects with name, filename, subfolder and type, as the host gives them")
    filename = _text(file, "filename")
    parts = PurePosixPath(below.replace("\\", "/")).parts + (filename,)
    path = roots[kind].joinpath(*parts)
    plain_name = not any(part in ("..", "/") or "\0" in part for part in parts) and "/" not in filename and "\\" not in filename
    try:
        there = plain_name and is_inside(path, roots[kind]) and path.is_file()
    except (OSError, ValueError):  # a name that no system has
        there = False
    if not there:
        raise AtelierError(f"files: {filename[:100]!r} is not in ComfyUI's {kind} folder. Bring it again.")
    return path
