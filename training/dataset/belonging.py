"""What belongs together among files that come into a folder, told by their names as a scan will tell it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import CAPTION_ENDINGS, RESERVED
from ..files import shortened
from . import names, unused
from .films import ENDINGS
from .images import EXTENSIONS
from .names import key
from .unused import Reason

PICTURES = EXTENSIONS | ENDINGS
"""Endings of what may have captions and masks: pictures and films."""
LONGEST_NAME = 180
"""Bytes of a file's name without its ending, so that there is room for a number and for the ending of a caption."""
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f\ud800-\udfff]')
SEVERAL = "several pictures that came along have this name. Bring each with what belongs to it"


@dataclass(frozen=True)
class Incoming:
    """A file that is to be brought in."""

    source: Path
    name: str
    """Its path below the folder as the person has it, with ``/``."""
    batch: int = 0
    """Which of several choices it came with: two of them may have files of one name."""

    @property
    def steps(self) -> list[str]:
        return steps_of(self.name)

    @property
    def path(self) -> str:
        """Below the folder, of names that every system can have."""
        return "/".join(map(safe, self.steps))


@dataclass(frozen=True)
class Companion:
    """A caption, mask or control picture of another picture."""

    file: Incoming
    pattern: str
    """Path below the folder, with ``{stem}`` or ``{name}`` where those of the picture stand."""
    whole: str
    """The whole name of its picture, as ``key`` gives it, where the file is called after that (``cat.jpg.txt``), else empty."""
    alone: Reason
    """Why it is left out without its picture."""

    def beside(self, picture: str) -> str:
        """Its path for a picture of this name."""
        return self.pattern.format(stem=os.path.splitext(picture)[0], name=picture)


@dataclass
class Group:
    """Pictures of one stem, and all that is called after it."""

    folder: str
    stem: str
    pictures: list[Incoming] = field(default_factory=list)
    companions: list[Companion] = field(default_factory=list)


class Pictures:
    """Names of a folder's pictures."""

    def __init__(self, found: Sequence[str] = ()) -> None:
        self.by_stem: dict[str, list[str]] = {}
        self.whole: set[str] = set()
        for name in found:
            self.add(name)

    def add(self, name: str) -> None:
        self.by_stem.setdefault(key(os.path.splitext(name)[0]), []).append(name)
        self.whole.add(key(name))

    def owner(self, text: str) -> tuple[str, str] | None:
        """(stem, whole name where ``text`` is one) of the picture that ``text`` names."""
        if key(text) in self.by_stem:
            return text, ""
        return (os.path.splitext(text)[0], key(text)) if key(text) in self.whole else None


@dataclass(frozen=True)
class Around:
    """What the folder holds that is brought into."""

    pictures: Callable[[str], Pictures]
    """Those of the folder with this path below."""
    folders: Callable[[str], list[str]]
    """Names of the folders in it."""


@dataclass(frozen=True)
class _Claim:
    """Whose a file is by its name."""

    folder: str
    text: str
    """Stem or whole name of the picture."""
    before: str
    behind: str
    """What stands around that in the path below the folder."""
    alone: Reason


class Sorting:
    """The files of one drop by what belongs together."""

    def __init__(self, files: Sequence[Incoming], around: Around, extension: str) -> None:
        self.around, self.extension = around, extension
        self.groups: dict[tuple[int, str, str], Group] = {}
        self.tables: list[Incoming] = []
        self.left: list[tuple[str, str]] = []
        kept = [(file, file.path) for file in files if self._is_used(file)]
        images = [(file, path) for file, path in kept if apart(path)[2] in PICTURES]
        self._seen = self._by_folder(images)
        self._folders = {key(apart(path)[0]): apart(path)[0] for _, path in kept}
        self._controls = {
            (file.batch, folder) for file, path in images
            if (folder := apart(path)[0]) and self._is_control(file.batch, folder, apart(path)[1])
        }  # fmt: skip
        claims = {file: claim for file, path in images if (claim := self._claim(file.batch, path))}
        self._own = self._by_folder([(file, path) for file, path in images if file not in claims])
        for file, path in kept:
            folder, stem, ending = apart(path)
            if file in claims:
                self._give(file, claims[file])
            elif ending in PICTURES:
                self._group(file.batch, folder, stem).pictures.append(file)
            elif ending in (self.extension.lower(), *CAPTION_ENDINGS, ".json"):
                own = self.extension if ending == self.extension.lower() else os.path.splitext(path)[1]
                bare, word = os.path.splitext(stem)  # cat.short.txt is one of cat.jpg
                if word and not self._known(file.batch, folder, stem) and self._known(file.batch, folder, bare):
                    stem, own = bare, word + own
                if ending == ".json" and not self._known(file.batch, folder, stem):  # of anything else
                    self.left.append((file.name, names.left_over(ending).what))
                    continue
                self._give(file, _Claim(folder, stem, f"{folder}/" if folder else "", own, unused.CAPTION_ALONE), caption=True)
            else:
                self.tables.append(file)

    def _is_used(self, file: Incoming) -> bool:
        why = useless(file.name, self.extension)
        folder, _, ending = apart(file.path)
        if not why and ending in ENDINGS and names.is_companion(folder.rpartition("/")[2]):
            why = f"{unused.FILM_BESIDE.what}. {unused.FILM_BESIDE.remedy}"
        self.left += [(file.name, why)] if why else []
        return not why

    @staticmethod
    def _by_folder(images: Sequence[tuple[Incoming, str]]) -> dict[tuple[int, str], Pictures]:
        found: dict[tuple[int, str], Pictures] = {}
        for file, path in images:
            folder, _, name = path.rpartition("/")
            found.setdefault((file.batch, folder), Pictures()).add(name)
        return found

    def _group(self, batch: int, folder: str, stem: str) -> Group:
        return self.groups.setdefault((batch, folder, key(stem)), Group(folder, stem))

    def _known(self, batch: int, folder: str, text: str) -> bool:
        came = self._seen.get((batch, folder))
        return bool((came and came.owner(text)) or self.around.pictures(folder).owner(text))

    def _is_control(self, batch: int, folder: str, stem: str) -> bool:
        """Whether a picture lies in a folder of control pictures and has its picture around that."""
        above, _, last = folder.rpartition("/")
        return names.control_folder(last) is not None and self._known(batch, above, self._controlled(batch, above, stem))

    def _controlled(self, batch: int, folder: str, stem: str) -> str:
        """Which picture one in a folder of control pictures names."""
        another = names.ANOTHER.fullmatch(stem)
        if self._known(batch, folder, stem):
            return stem
        if another and self._known(batch, folder, another[1]):
            return another[1]
        kind, marked, _ = names.mark(stem)
        return marked if kind == "control" else stem

    def _claim(self, batch: int, path: str) -> _Claim | None:
        """Whose mask or control picture a picture is; None for a picture of its own, which every film is."""
        folder, stem, kind_of_file = apart(path)
        if kind_of_file in ENDINGS:
            return None
        ending = os.path.splitext(path)[1]
        above, _, last = folder.rpartition("/")
        kind, marked, sure = names.mark(stem)
        place = f"{folder}/" if folder else ""

        def claim(owner: str, text: str, alone: Reason) -> _Claim:
            cut = len(stem) - len(text)
            before = stem[:cut] if names.is_marked_in_front(stem) else ""
            return _Claim(owner, text, place + before, stem[len(before) + len(text) :] + ending, alone)

        masked = marked if kind == "mask" else stem
        if last.casefold() in names.MASK_FOLDERS:
            return claim(above, masked, unused.MASK_ALONE)
        if (batch, folder) in self._controls:
            return claim(above, self._controlled(batch, above, stem), unused.CONTROL_ALONE)
        for pattern, is_mask in ((names.MASKS_OF, True), (names.CONTROLS_OF, False)):
            match = pattern.fullmatch(key(last))
            if match and (beside := self._folder(above, match[1])) is not None:
                text = masked if is_mask else self._controlled(batch, beside, stem)
                return claim(beside, text, unused.MASK_ALONE if is_mask else unused.CONTROL_ALONE)
        if kind and (sure or self._has_stem(batch, folder, marked)):
            return claim(folder, marked, unused.MASK_ALONE if kind == "mask" else unused.CONTROL_ALONE)
        return None

    def _has_stem(self, batch: int, folder: str, stem: str) -> bool:
        came = self._seen.get((batch, folder), Pictures())
        return key(stem) in came.by_stem or key(stem) in self.around.pictures(folder).by_stem

    def _folder(self, above: str, wanted: str) -> str | None:
        """The folder in ``above`` whose name has the key ``wanted``, as it is called."""
        if (came := self._folders.get(key(f"{above}/{wanted}".lstrip("/")))) is not None:
            return came
        found = next((name for name in self.around.folders(above) if key(name) == wanted), None)
        return None if found is None else f"{above}/{found}".lstrip("/")

    def _give(self, file: Incoming, claim: _Claim, caption: bool = False) -> None:
        """Puts a file to its picture: one that came with it, else with another choice, else that lies there."""
        came = [batch for (batch, folder), held in self._own.items() if folder == claim.folder and held.owner(claim.text)]
        if file.batch not in came and len(came) > 1:
            self.left.append((file.name, SEVERAL))
            return
        batch = file.batch if file.batch in came or not came else came[0]
        holder = self._own[batch, claim.folder] if came else self.around.pictures(claim.folder)
        owner = holder.owner(claim.text)
        if owner is None:
            self.left.append((file.name, claim.alone.what))
            return
        stem, whole = owner
        slot = "{name}" if whole and not caption else "{stem}"
        pattern = _literal(claim.before) + slot + _literal(claim.behind)
        self._group(batch, claim.folder, stem).companions.append(Companion(file, pattern, whole, claim.alone))


def useless(name: str, extension: str) -> str:
    """Why a file of this name is not brought, whatever is in it; empty where it may be of use."""
    parts = steps_of(name)
    why = unused.HIDDEN if not parts or ".." in parts else next(filter(None, map(names.passed_over, parts)), None)
    if why is not None and why is not unused.NOT_UTF8:  # its name is made such that every system has it
        return why.what
    ending = apart("/".join(map(safe, parts)))[2]
    if ending in PICTURES or ending in (extension.lower(), ".jsonl", ".json", *CAPTION_ENDINGS):
        return ""
    reason = names.left_over(ending)
    return f"{reason.what}. {reason.remedy}".strip()


def steps_of(name: str) -> list[str]:
    """A path as its parts."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def safe(part: str) -> str:
    """A name that every system can have, as near to ``part`` as that goes."""
    stem, ending = os.path.splitext(FORBIDDEN.sub("_", part))
    stem, ending = shortened(stem, LONGEST_NAME).strip(" "), shortened(ending, 20).rstrip(" .")
    stem = stem if ending else stem.rstrip(" .")
    return (f"{stem}_" if not stem or stem.split(".")[0].lower() in RESERVED else stem) + ending


def apart(path: str) -> tuple[str, str, str]:
    """(folder, stem, ending in lower case)."""
    around, _, name = path.rpartition("/")
    stem, ending = os.path.splitext(name)
    return around, stem, ending.lower()


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
