"""What was learnt from opening a picture, kept beside the cache so that an unchanged picture is not opened again.

A picture counts as unchanged while its size and its time of change are the same, as in version control systems.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import AtelierError
from ..files import Unreadable, open_plain, read_json, write_text
from . import films
from .buckets import Size
from .films import FilmFacts
from .focus import detector_name, focus_point
from .heads import DETECTOR, Face, largest_face
from .images import look_at, open_picture, timing_of
from .near_duplicates import LENGTH, look_of

VERSION = 2
LARGEST = 2**28
"""Bytes of an index, of which a picture takes some three hundred."""
KEY, LOOK = re.compile(r"[0-9a-f]{64}"), re.compile(rf"(?:[0-9a-f]{{{LENGTH}}})?")
AT_ONCE = 256 * 2**20
"""Bytes: a file of so many is read once and held while it is looked into; a larger one (a photo with a film behind it) is not."""
_known: dict[Path, tuple[tuple[int, int], Facts]] = {}
"""This process' memory: path -> ((bytes, mtime in ns), facts)."""


@dataclass(frozen=True)
class Facts:
    """What a picture is."""

    width: int
    """Pixels, after EXIF rotation."""
    height: int
    key: str
    """SHA-256 (hex) of the file's bytes."""
    look: str
    """``near_duplicates.look_of``."""
    focus: dict[str, list[float]] = field(default_factory=dict)
    """``"<detector> <width>x<height>"`` -> where the middle of what matters is, for a cut of these proportions."""
    heads: dict[str, list[float]] = field(default_factory=dict)
    """Detector -> (left, top, right, bottom) of the largest face, and how many others there are; nothing without a face."""
    several: bool = False
    """Whether the file holds further frames or pages, of which the first is the picture."""
    film: list[int] = field(default_factory=list)
    """[frames, and frames a second as a fraction's two numbers] of a film, and of an animated picture as far as it was asked."""

    @property
    def face(self) -> Face | None:
        """The largest face, as far as it was looked for."""
        found = self.heads.get(DETECTOR)
        return Face((found[0], found[1], found[2], found[3]), int(found[4])) if found else None


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of the file's bytes."""
    with open_plain(path) as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def look_into(path: Path) -> Facts:
    """Facts of a sound picture, its file opened once; AtelierError if it is none or may not be read, OSError if it is gone."""
    if films.is_film(path):
        film, frame = films.look_at(path)
        rate = film.rate.limit_denominator(1_000_000)
        counts = [film.frames, max(1, rate.numerator), rate.denominator]
        return Facts(film.width, film.height, file_digest(path), look_of(frame), film=counts)
    with open_plain(path) as opened:
        file: BinaryIO = io.BytesIO(opened.read()) if os.fstat(opened.fileno()).st_size <= AT_ONCE else opened
        (width, height), small, several = look_at(path, file)  # first, for of what is no picture there may be gigabytes
        file.seek(0)
        key = _digest(file)
    return Facts(width, height, key, look_of(small), several=several)


def frames_now(path: Path) -> int:
    """How many frames the film has, or the animated picture, as it lies on the disk now; 0 for a picture of one frame."""
    index = Index()
    index.facts(path)
    film = index.film(path)
    return film.frames if film else 0


class Index:
    """The facts of the pictures of one folder; ``file`` (JSON) outlives the process, None doesn't."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._changed = False
        self._used: dict[Path, tuple[tuple[int, int], Facts]] = {}
        self._stored = _read(file) if file is not None else {}

    def facts(self, path: Path) -> Facts:
        """Facts of a sound picture; AtelierError naming the file if it is none."""
        try:
            stat = path.stat()
            stamp = (stat.st_size, stat.st_mtime_ns)
            entry = next((e for e in (_known.get(path), self._stored.get(str(path))) if e and e[0] == stamp), None)
            if entry is None:
                entry = (stamp, look_into(path))
        except Unreadable as error:
            raise AtelierError(f"{path}: this picture cannot be read ({error.why}). Allow it, or remove it.") from error
        except AtelierError:
            raise
        except OSError as error:
            raise AtelierError(f"{path}: this picture cannot be read ({error.strerror}). Allow it, or remove it.") from error
        self._keep(path, *entry)
        return entry[1]

    def remembered(self, path: Path) -> Facts | None:
        """Facts of a picture that was looked into before and has not changed since; the picture is not opened."""
        try:
            stat = path.stat()
        except OSError:
            return None
        stamp = (stat.st_size, stat.st_mtime_ns)
        return next((e[1] for e in (_known.get(path), self._stored.get(str(path))) if e and e[0] == stamp), None)

    def focus(self, path: Path, shape: Size) -> tuple[float, float]:
        """Where the middle of what matters is if the picture is cut to the proportions of ``shape``."""
        stamp, facts = self._used[path]
        name = f"{detector_name()} {shape[0]}x{shape[1]}"
        if name not in facts.focus:
            point = focus_point(open_picture(path), shape)
            facts = dataclasses.replace(facts, focus={**facts.focus, name: list(point)})
            self._keep(path, stamp, facts)
        x, y = facts.focus[name]
        return x, y

    def film(self, path: Path) -> FilmFacts | None:
        """What a film is, or an animated picture as one; None for a picture of one frame."""
        stamp, facts = self._used[path]
        if facts.several and not facts.film:
            frames, rate = timing_of(path)
            facts = dataclasses.replace(facts, film=[frames, max(1, rate.numerator), rate.denominator])
            self._keep(path, stamp, facts)
        if not facts.film or (facts.several and facts.film[0] == 1):
            return None
        frames, above, below = facts.film
        return FilmFacts(facts.width, facts.height, frames, Fraction(above, below))

    def head(self, path: Path) -> Face | None:
        """The largest face of the picture; None without any."""
        stamp, facts = self._used[path]
        if DETECTOR not in facts.heads:
            face = largest_face(open_picture(path))
            facts = dataclasses.replace(facts, heads={**facts.heads, DETECTOR: [*face.box, face.others] if face else []})
            self._keep(path, stamp, facts)
        return facts.face

    def save(self, complete: bool = True) -> None:
        """Writes the file if anything was learnt; a folder that cannot be written costs only time.

        Pictures that nobody asked for are forgotten, unless the asking was not ``complete``.
        """
        if self.file is None or not self._changed:
            return
        kept = {} if complete else self._stored
        known = {**kept, **{str(path): entry for path, entry in self._used.items()}}
        rows = {path: [*stamp, dataclasses.asdict(facts)] for path, (stamp, facts) in known.items()}
        try:
            write_text(self.file, json.dumps({"version": VERSION, "pictures": rows}))
        except (OSError, AtelierError):
            return
        self._changed = False

    def _keep(self, path: Path, stamp: tuple[int, int], facts: Facts) -> None:
        self._changed |= self._stored.get(str(path)) != (stamp, facts)
        _known[path] = self._used[path] = (stamp, facts)


def _read(file: Path) -> dict[str, tuple[tuple[int, int], Facts]]:
    """The stored facts; a missing, damaged or older file counts as empty, and a damaged row is left out."""
    try:
        values = read_json(file, LARGEST)
    except (Unreadable, FileNotFoundError):
        return {}
    rows = values.get("pictures") if isinstance(values, dict) and values.get("version") == VERSION else None
    found = {path: _row(row) for path, row in rows.items()} if isinstance(rows, dict) else {}
    return {path: row for path, row in found.items() if row is not None}


def _row(row: Any) -> tuple[tuple[int, int], Facts] | None:
    """A stored row as it was kept; None for what was not written here: such facts would be believed."""
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[2], dict):
        return None
    *stamp, values = row
    try:
        facts = Facts(**values)
    except TypeError:
        return None
    sizes = (facts.width, facts.height)
    sound = all(type(number) is int for number in (*stamp, *sizes)) and min(sizes) > 0
    sound = sound and all(isinstance(text, str) for text in (facts.key, facts.look)) and isinstance(facts.focus, dict)
    sound = sound and isinstance(facts.several, bool)
    sound = sound and KEY.fullmatch(facts.key) is not None and LOOK.fullmatch(facts.look) is not None
    sound = sound and all(map(_is_point, facts.focus.values())) and isinstance(facts.film, list) and len(facts.film) in (0, 3)
    sound = sound and all(type(number) is int and number > 0 for number in facts.film)
    sound = sound and isinstance(facts.heads, dict) and all(map(_is_head, facts.heads.values()))
    return ((stamp[0], stamp[1]), facts) if sound else None


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(isinstance(at, (int, float)) and 0 <= at <= 1 for at in point)


def _is_head(head: Any) -> bool:
    if head == []:
        return True
    if not (isinstance(head, list) and len(head) == 5 and all(map(_is_point, (head[:2], head[2:4]))) and type(head[4]) is int):
        return False
    return bool(head[0] < head[2] and head[1] < head[3] and head[4] >= 0)
