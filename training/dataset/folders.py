"""Dataset folders that a person may choose, as names that mean the same on every computer: ``input/portraits``."""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..config import RESERVED
from ..errors import AtelierError
from ..files import is_file, is_inside
from .films import ENDINGS
from .images import EXTENSIONS
from .names import NUMBERED, is_companion, is_text, natural_key, passed_over
from .samples import printable

MOST = 20_000
"""Folders that are looked into for the list; beyond that many, deeper ones are left out, with a line in the log."""
log = logging.getLogger("lora-atelier")
_said: set[str] = set()
"""What was logged, since the list is made anew whenever a page is loaded."""
NEW_NAME = re.compile(r"[^\s.~<>:\"|?*\x00-\x1f][^<>:\"|?*\x00-\x1f]{0,99}")
"""A folder's name that every system can have, and that is not hidden."""


@dataclass
class _Folder:
    """A folder while the list is made."""

    path: str
    name: str
    """``<root>/<path>``."""
    around: tuple[str, ...]
    """Resolved paths of the folders on the way to it, in which a link must not lead back."""
    holds_picture: bool = False
    below: list[os.DirEntry[str]] = field(default_factory=list)

    def look(self) -> None:
        """Fills in what lies in it; a folder that cannot be read holds nothing."""
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if passed_over(entry.name):
                        if entry.is_dir(follow_symlinks=False) and not is_text(entry.name):
                            _say(f"{self.name}/{printable(entry.name)} is not offered, since its name is not UTF-8; rename it.")
                    elif entry.is_dir():
                        self.below.append(entry)
                    else:
                        self.holds_picture |= os.path.splitext(entry.name)[1].lower() in EXTENSIONS | ENDINGS
        except OSError:
            return

    def sub_folder(self, entry: os.DirEntry[str], root: str) -> _Folder | None:
        """The sub-folder, unless it is a link that leads out of ``root`` or back."""
        name, real = f"{self.name}/{entry.name}", os.path.join(self.around[-1], entry.name)
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if not Path(real).is_relative_to(root):
                _say(f"{name} is not offered, since it is a link that leads out of {root}; copy the pictures there instead.")
                return None
            if any(Path(one).is_relative_to(real) for one in self.around):
                return None
        return _Folder(entry.path, name, (*self.around, real))


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        log.warning("dataset folders: %s", line)


def _refuse_long(name: str) -> None:
    if len(name.encode("utf-8", "replace")) > 2000 or any(len(part.encode("utf-8", "replace")) > 255 for part in name.split("/")):
        raise AtelierError(f"folder: {name[:40]!r} ... is too long to be a folder's name. Choose one from the list.")


def _odd(name: str) -> bool:
    """Whether some system would read the name as more than a name ("C:x", "a\\..\\b")."""
    return "\\" in name or "\0" in name or bool(PureWindowsPath(name).drive) or (os.name == "nt" and ":" in name)


def list_folders(roots: Mapping[str, Path]) -> list[str]:
    """Names ``<root>/<path>`` of the folders, however deep, with pictures in them or in ``N_name`` sub-folders.

    Links are followed as far as they stay in their root and lead to no folder around them. What the names of files say is all
    that is read.
    """
    names: list[str] = []
    for root, path in roots.items():
        real = os.path.realpath(path)
        top = _Folder(str(path), root, (real,))
        top.look()
        waiting = deque([top])
        looked = 0
        while waiting:
            folder = waiting.popleft()
            # Those that wait are looked into already, so what lies in them is listed also when there are too many.
            entries = folder.below if looked <= MOST else []
            inner = [
                one
                for entry in entries
                if not _odd(f"{folder.name}/{entry.name}") and (one := folder.sub_folder(entry, real)) is not None
            ]
            for one in inner:
                one.look()
            looked += len(inner)
            numbered = any(one.holds_picture and NUMBERED.fullmatch(os.path.basename(one.path)) for one in inner)
            if folder is not top and (folder.holds_picture or numbered):
                names.append(folder.name)
            waiting += [one for one in inner if not (folder.holds_picture and is_companion(os.path.basename(one.path)))]
        if looked > MOST:
            _say(f"{path} holds more than {MOST} folders; those that lie deepest are not offered. Move unrelated ones out.")
    return sorted(names, key=natural_key)


def resolve_folder(name: str, roots: Mapping[str, Path]) -> Path:
    """The folder that ``name`` stands for; AtelierError for ``..``, an absolute path, an unknown root, or a link out of it."""
    allowed = " or ".join(f"{root}/" for root in roots)
    parts = PurePosixPath(name).parts
    if not is_text(name):
        raise AtelierError(f"folder: the name '{printable(name)}' is not UTF-8. Rename the folder, and choose it again.")
    _refuse_long(name)
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
    _refuse_long(name)
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
        taken = is_companion(part) or part.split(".")[0].lower() in RESERVED or len(part.encode("utf-8", "replace")) > 200
        if taken or not NEW_NAME.fullmatch(part) or part.endswith((" ", ".")):
            raise AtelierError(f"folder: {name!r} has the part {part!r}, which cannot be a folder's name. Write another one.")
    path = Path(roots[root]).joinpath(*below)
    if not is_inside(path, Path(roots[root])):
        raise AtelierError(f"folder: {name!r} is a link that leads out of {root}/. Write another name.")
    if is_file(next((p for p in (path, *path.parents) if os.path.lexists(p)), path)):
        raise AtelierError(f"folder: {name!r} is or goes through a file. Write another name.")
    return "/".join((root, *below)), path
