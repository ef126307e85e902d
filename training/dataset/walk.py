"""Which folders belong to a dataset: flat, in sd-scripts' layout of ``N_name`` sub-folders, or nested. No file is opened."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AtelierError
from ..files import is_inside
from . import names, unused
from .images import FORMATS
from .listing import NOBODY, Companions, FoundFolder, entries, holds_pictures, leads_outside, look, refuse_outside
from .names import NUMBERED
from .unused import Reason, sentences


@dataclass
class Walk:
    """What holds for the whole walk."""

    root: Path
    """Resolved; links may lead anywhere inside."""
    nested: bool
    extension: str
    tops: list[Path]
    """Resolved folders all of whose sub-folders are visited: the chosen one, and those that links led to."""
    passed: list[tuple[Reason, Path]] = field(default_factory=list)
    """Folders that are not used."""
    films: bool = False
    """Whether films count as pictures."""

    def visit(self, folder: Path, elsewhere: Companions = NOBODY) -> list[FoundFolder]:
        """``folder`` with all that belongs to it, then each ``N_name`` folder below."""
        own, below = look(folder, self.root, self.extension, elsewhere, self.films)
        numbered: list[FoundFolder] = []
        beside = {names.key(path.name) for path in below}
        is_prepared = "img" in beside and bool(beside & {"reg", "log", "model"})
        theirs: dict[str, Companions] = {}
        separate: set[Path] = set()
        for path in (one for one in below if not leads_outside(one, self.root)):
            masks, controls = (pattern.fullmatch(names.key(path.name)) for pattern in (names.MASKS_OF, names.CONTROLS_OF))
            match = masks or controls
            if match and match[1] in beside:
                so_far = theirs.get(match[1], Companions())
                theirs[match[1]] = (
                    Companions((*so_far.masks, path), so_far.controls) if masks
                    else Companions(so_far.masks, (*so_far.controls, (int(match[2] or 0), path)))
                )  # fmt: skip
                separate.add(path)
        for path in (one for one in below if one not in separate):
            name, its_own = names.key(path.name), theirs.get(names.key(path.name), Companions())
            if reason := self._turned_away(path, is_prepared):
                self.passed.append((reason, path))
            elif NUMBERED.fullmatch(path.name):
                numbered += self.visit(path, its_own) if self.nested or path.parent != own.folder else [self._flat(path, its_own)]
            elif self.nested:
                inner, *others = self.visit(path, its_own)
                own = _joined(own, inner)
                numbered += others
            elif name == "img" and any(NUMBERED.fullmatch(entry.name) and entry.is_dir() for entry in entries(path)):
                inner, *others = self.visit(path)
                numbered += others
                self.passed += [(unused.UNNUMBERED, path)] if inner.pictures else []
            else:
                self.passed.append((self._ignored(path), path))
        return [own, *numbered]

    def _flat(self, path: Path, elsewhere: Companions) -> FoundFolder:
        """A numbered folder without what lies in its sub-folders."""
        found, below = look(path, self.root, self.extension, elsewhere, self.films)
        for inner in below:
            reason = self._turned_away(inner, False) or (
                unused.DEEPER if holds_pictures(inner, self.films) else self._ignored(inner)
            )
            self.passed.append((reason, inner))
        return found

    def _turned_away(self, path: Path, is_prepared: bool) -> Reason | None:
        """Why a sub-folder is not even visited; AtelierError for a numbered one that is a link out of the root."""
        name = names.key(path.name)
        if path.is_symlink():
            if NUMBERED.fullmatch(path.name):
                refuse_outside(path, self.root)
            if reason := self._link(path):
                return reason
        if name in names.REGULARISATION_FOLDERS and holds_pictures(path, self.films):
            return unused.REGULARISATION
        return unused.LEAVINGS if is_prepared and name in ("log", "model") else None

    def _link(self, path: Path) -> Reason | None:
        target = Path(os.path.realpath(path))  # unlike resolve() it takes a link that leads to itself
        if not target.is_relative_to(self.root):
            return unused.LINK_OUT
        around = any(top.is_relative_to(target) for top in self.tops)
        is_read = self.nested and any(target.is_relative_to(top) for top in self.tops)
        if around or (is_read and not NUMBERED.fullmatch(path.name)) or is_inside(path.parent, target):
            return unused.LINK_AGAIN
        if self.nested:
            self.tops.append(target)
        return None

    def _ignored(self, path: Path) -> Reason:
        if names.key(path.name) in names.CAPTION_FOLDERS and not holds_pictures(path, self.films):
            return unused.CAPTION_FOLDER
        return unused.UNNUMBERED if holds_pictures(path, self.films) else unused.NO_PICTURES


def _joined(own: FoundFolder, inner: FoundFolder) -> FoundFolder:
    return dataclasses.replace(
        own, pictures=own.pictures + inner.pictures, warnings=own.warnings + inner.warnings, tables=own.tables + inner.tables,
        captions={**own.captions, **inner.captions}, masks={**own.masks, **inner.masks},
        controls={**own.controls, **inner.controls}, further={**own.further, **inner.further},
        seconds={**own.seconds, **inner.seconds}, guessed=own.guessed + inner.guessed, unused=own.unused + inner.unused,
    )  # fmt: skip


def find(
    folder: Path, root: Path | None = None, nested: bool = False, extension: str = ".txt", films: bool = False
) -> tuple[FoundFolder, ...]:  # fmt: skip
    """``folder`` and its ``N_name`` sub-folders, as far as they hold pictures; AtelierError if there is none.

    ``nested``: the pictures of all other sub-folders, however deep, belong to the folder around them. Links may lead anywhere
    inside ``root`` (default: the folder itself) and nowhere else. ``extension``: ending of caption files. ``films``: whether
    films count as pictures. Every other file and folder is in some ``unused``. What lies in folders without pictures belongs to
    the first that has some: files that are not used, and tables, which may name pictures of sub-folders.
    """
    inside = (root or folder).resolve()
    refuse_outside(folder, inside)
    walk = Walk(inside, nested, extension, [folder.resolve()], films=films)
    found = walk.visit(folder, _siblings(folder, inside))
    with_pictures = [one for one in found if one.pictures]
    bare = [one for one in found if not one.pictures]
    passed = [*walk.passed, *(entry for one in bare for entry in one.unused)]
    tables = tuple(table for one in bare for table in one.tables)
    if not with_pictures:
        passed += [(unused.CAPTION_ALONE, table) for table in tables]
        hints = sentences(passed, folder, quiet=False)
        expected = f"Put pictures ({FORMATS}) there, or into sub-folders named like '10_name'."
        raise AtelierError(" ".join([f"folder: {folder} has no pictures. {expected}", *(_upper(hint) for hint in hints)]))
    first = with_pictures[0]
    with_pictures[0] = dataclasses.replace(first, tables=(*tables, *first.tables), unused=(*first.unused, *passed))
    return tuple(with_pictures)


def _siblings(folder: Path, root: Path) -> Companions:
    """Folders with masks and control pictures beside the chosen one (``cats_mask``, ``cats_control``)."""
    if folder.resolve() == root or not is_inside(folder.parent, root):
        return NOBODY
    own, masks, controls = names.key(folder.name), [], []
    for entry in entries(folder.parent):
        path, name = Path(entry.path), names.key(entry.name)
        if not names.is_text(entry.name) or not entry.is_dir() or leads_outside(path, root):
            continue
        if (match := names.MASKS_OF.fullmatch(name)) and match[1] == own:
            masks.append(path)
        elif (match := names.CONTROLS_OF.fullmatch(name)) and match[1] == own:
            controls.append((int(match[2] or 0), path))
    return Companions(tuple(masks), tuple(controls))


def _upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
