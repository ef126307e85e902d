"""Dataset folders that a person may choose, as names that mean the same on every computer: ``input/portraits``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..config import RESERVED
from ..errors import AtelierError
from ..files import is_file, is_inside
from .images import EXTENSIONS
from .masks import FOLDER as MASKS
from .scan import NUMBERED, natural_key

DEPTH = 3
NEW_NAME = re.compile(r"[^\s.~<>:\"|?*\x00-\x1f][^<>:\"|?*\x00-\x1f]{0,99}")
"""A folder's name that every system can have, and that is not hidden."""


def _holds_picture(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(not e.name.startswith(".") and os.path.splitext(e.name)[1].lower() in EXTENSIONS for e in entries)
    except OSError:
        return False


def _sub_folders(folder: str) -> list[os.DirEntry[str]]:
    """Visible sub-folders; links are left out, so that the search stays inside the root and ends."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _odd(name: str) -> bool:
    """Whether some system would read the name as more than a name ("C:x", "a\\..\\b")."""
    return "\\" in name or "\0" in name or bool(PureWindowsPath(name).drive) or (os.name == "nt" and ":" in name)


def list_folders(roots: Mapping[str, Path]) -> list[str]:
    """Names ``<root>/<path>`` of the folders, at most three deep, with pictures in them or in ``N_name`` sub-folders."""
    names: list[str] = []

    def visit(folder: str, name: str, depth: int) -> None:
        for entry in _sub_folders(folder):
            path, full = entry.path, f"{name}/{entry.name}"
            if _odd(full):
                continue
            if entry.name == MASKS:
                continue
            if _holds_picture(path) or any(NUMBERED.fullmatch(e.name) and _holds_picture(e.path) for e in _sub_folders(path)):
                names.append(full)
            if depth < DEPTH:
                visit(path, full, depth + 1)

    for root, path in roots.items():
        visit(str(path), root, 1)
    return sorted(names, key=natural_key)


def resolve_folder(name: str, roots: Mapping[str, Path]) -> Path:
    """The folder that ``name`` stands for; AtelierError for ``..``, an absolute path, an unknown root, or a link out of it."""
    allowed = " or ".join(f"{root}/" for root in roots)
    parts = PurePosixPath(name).parts
    if not name.strip() or _odd(name) or name.startswith("/") or ".." in parts or len(parts) < 2 or parts[0] not in roots:
        raise AtelierError(f"folder: {name!r} is not a folder in {allowed}. Choose one from the list.")
    root = Path(roots[parts[0]])
    path = root.joinpath(*parts[1:])
    if not is_inside(path, root):
        raise AtelierError(f"folder: {name!r} is a link that leads out of {parts[0]}/. Copy the pictures there instead.")
    if not os.path.isdir(path):  # unlike Path.is_dir it takes any name
        raise AtelierError(f"folder: {name!r} does not exist here. Put the pictures into that folder, or choose another one.")
    return path


def folder_to_fill(name: str, roots: Mapping[str, Path]) -> tuple[str, Path]:
    """(``<root>/<path>``, the folder), which may not exist yet; a name that begins with no root lies in the first one.

    AtelierError for whatever leads out of the roots, and for names that some system cannot have.
    """
    parts = PurePosixPath(name.strip()).parts
    first = next(iter(roots))
    allowed = " or ".join(f"{root}/" for root in roots)
    if (
        not name.strip()
        or _odd(name)
        or name.strip().startswith("/")
        or ".." in parts
        or not parts
        or parts in [(r,) for r in roots]
    ):
        raise AtelierError(f"folder: {name!r} is not a folder in {allowed}. Write a name such as {first}/reg/1_man.")
    root, *below = parts if parts[0] in roots else (first, *parts)
    for part in below:
        taken = part == MASKS or part.split(".")[0].lower() in RESERVED or len(part.encode("utf-8", "replace")) > 200
        if taken or not NEW_NAME.fullmatch(part) or part.endswith((" ", ".")):
            raise AtelierError(f"folder: {name!r} has the part {part!r}, which cannot be a folder's name. Write another one.")
    path = Path(roots[root]).joinpath(*below)
    if not is_inside(path, Path(roots[root])):
        raise AtelierError(f"folder: {name!r} is a link that leads out of {root}/. Write another name.")
    if is_file(next((p for p in (path, *path.parents) if os.path.lexists(p)), path)):
        raise AtelierError(f"folder: {name!r} is or goes through a file. Write another name.")
    return "/".join((root, *below)), path
