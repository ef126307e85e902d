"""What the page asks of pictures as files: bringing them into a folder, what was drawn here, taking out, putting back, turning.

Every function takes plain JSON values and gives such back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..training import host
from ..training.config import SubsetConfig
from ..training.dataset import put_aside, turning
from ..training.dataset.folders import folder_to_fill
from ..training.dataset.images import EXTENSIONS
from ..training.dataset.incoming import MOST, Incoming, bring
from ..training.errors import AtelierError
from ..training.files import is_inside
from .caption_routes import config_of, is_plain, place_of, wrong

STAGED = "lora-atelier-incoming"
"""Folder inside the host's temp folder, into which the page uploads through the host; each drop has a folder of its own there."""
LISTED = 500
"""Pictures of the output folder that are offered, the newest."""
LOOKED_AT = 20_000
"""Files of the output folder that are looked at for that."""


def add(body: Mapping[str, Any]) -> dict[str, Any]:
    """Brings files that the host holds (uploaded, or drawn here) into a dataset's folder, which is made if it is new.

    ``files``: objects with ``name``, as the person has it, the host's ``filename``, ``subfolder`` and ``type``, and ``batch``,
    the number of the choice with which it came (none: all came with one). Answers with the folder's name, what is ``new``, what
    was ``there`` and what was ``left``, with its reason.
    """
    files, extension = body.get("files"), body.get("extension", ".txt")
    if not isinstance(files, list) or len(files) > MOST or not all(isinstance(file, dict) for file in files):
        raise wrong("files", f"a list of at most {MOST} objects")
    name, folder = folder_to_fill(_text(body, "folder"), host.dataset_roots())
    config = config_of({"folder": name, "caption_extension": extension})
    incoming = [Incoming(_held(file), _text(file, "name", 4000), _batch(file)) for file in files]
    with _cleared(incoming):
        done = bring(incoming, folder, config.caption_extension)
    return {"folder": name, "new": done.new, "there": done.there, "left": done.left}


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
    """The newest pictures in the host's output folder, as the host finds them; the runs' own pictures are left out."""
    top = host.output_folder()
    found: list[tuple[float, Path]] = []
    looked = 0
    for around, folders, files in os.walk(top):
        folders[:] = [f for f in folders if not f.startswith(".") and Path(around, f) != host.runs_folder()]
        looked += len(files)
        if looked > LOOKED_AT:
            break
        for file in files:
            path = Path(around, file)
            if path.suffix.lower() in EXTENSIONS and not file.startswith("."):
                with suppress(OSError):
                    found.append((path.stat().st_mtime, path))
    newest = sorted(found, reverse=True)[:LISTED]
    return {
        "pictures": [host.shown_picture(path) for _, path in newest if is_inside(path, top)],
        "more": len(found) - len(newest),
    }


def remove(body: Mapping[str, Any]) -> dict[str, Any]:
    """Puts pictures of a folder aside; ``entry`` is what puts them back."""
    folder, root, config = _place(body)
    return {"entry": put_aside.remove(folder, _names(body), config, root)}


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


POSTS = {
    "pictures/add": (add, ("folder", "extension", "files")),
    "pictures/remove": (remove, ("folder", "extension", "nested", "pictures")),
    "pictures/restore": (restore, ("folder", "extension", "nested", "entry")),
    "pictures/turn": (turn, ("folder", "extension", "nested", "pictures", "quarters")),
}
"""What answers to which path, and the fields that it takes."""


def _place(body: Mapping[str, Any]) -> tuple[Path, Path, SubsetConfig]:
    """(folder, its root, the settings that say which pictures there are)."""
    widgets = {"folder": "folder", "extension": "caption_extension", "nested": "nested"}
    config = config_of({widget: body[field] for field, widget in widgets.items() if field in body})
    return *place_of(config.folder), config


def _names(body: Mapping[str, Any]) -> list[str]:
    names = body.get("pictures")
    if not isinstance(names, list) or not 0 < len(names) <= MOST or not all(isinstance(n, str) and is_plain(n) for n in names):
        raise wrong("pictures", "a list of names")
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
