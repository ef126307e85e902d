"""Caption files of a subset, with what a person should know of them."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..config import CAPTION_ENDINGS, SubsetConfig
from ..errors import AtelierError
from ..files import Unreadable, read_limited
from .captions import MAX_BYTES, arranged, caption_file_of, caption_path, clean, of_one_source, several, some
from .encodings import SAMPLE, decoded, guess, text_of
from .json_captions import json_captions
from .names import key


@dataclass(frozen=True)
class CaptionFile:
    """What a caption file holds."""

    text: str
    """With its lines."""
    data: bytes
    encoding: str
    guessed: bool


class CaptionReader:
    """Reads the caption files of one subset, and notes what the person should know of them.

    Files of a folder are mostly of one encoding, so a guess looks at all that are not UTF-8; it is a guess all the same.
    """

    def __init__(self, config: SubsetConfig) -> None:
        self.config = config
        self._guesses: dict[tuple[Path, str], str | None] = {}
        self._beside: dict[Path, Mapping[str, Sequence[Path]]] = {}
        self._encodings: dict[tuple[str, bool], list[str]] = {}
        self._lines: list[str] = []
        self._json: dict[str, None] = {}
        self._json_passed: dict[str, None] = {}

    def caption(self, picture: Path, other: Path | None = None) -> str | None:
        """What the picture's caption file says, None without a file; AtelierError naming a file that cannot be read.

        ``other`` is one under another name than the usual one, which counts while there is no usual one.
        """
        path = caption_file_of(picture, self.config.caption_extension, other)
        return self.said(path, self.file(path))

    def further(self, path: Path) -> list[str]:
        """The texts of a further caption file, none without one; AtelierError naming a file that holds none."""
        found = self.file(path)
        if found is None:
            return []
        if path.suffix.lower() != ".json":
            text = self.said(path, found)
            return [text] if text else []
        texts, read, passed = json_captions(path, found.data)
        self._json |= dict.fromkeys(read)
        self._json_passed |= dict.fromkeys(passed)
        return of_one_source(texts, self.config).split("\n")

    def together(self, own: str | None, further: Sequence[Path]) -> str | None:
        """The picture's own caption, or captions, with those of ``further`` files as alternatives."""
        more = [text for file in further for text in self.further(file)]
        return several([*(own or "").split("\n"), *more], self.config) if more else own

    def said(self, path: Path, found: CaptionFile | None) -> str | None:
        """The text of a file that was read, as the subset means it."""
        if found is None:
            return None
        if found.encoding not in ("utf-8", "utf-8-sig"):
            names = self._encodings.setdefault((found.encoding, found.guessed), [])
            names += [path.name] if path.name not in names[-1:] else []
        if "\n" in found.text and path.name not in self._lines[-1:]:
            self._lines.append(path.name)
        return arranged(found.text, self.config)

    def file(self, path: Path) -> CaptionFile | None:
        """The file, None without one; AtelierError if it is too large, no text, or of an encoding that nobody can tell."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise AtelierError(f"{path}: this is too large for a caption file (more than 1 MB). Take it out of the folder.")
            data = read_limited(path, MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None  # no file can have such a name
            raise AtelierError(f"{path}: the caption cannot be read ({error.strerror}).") from error
        except Unreadable as error:
            raise AtelierError(f"{path}: the caption cannot be read ({error.why}).") from error
        return self.parsed(path, data)

    def parsed(self, path: Path, data: bytes) -> CaptionFile:
        """What a file of these bytes holds."""
        found = text_of(path, data, self.config.caption_encoding, lambda: self._guess(path))
        return CaptionFile(clean(found.text), data, found.encoding, found.guessed)

    def others(self, picture: Path) -> list[Path]:
        """Files beside the picture that look like its caption and are not read: of another ending, case or name."""
        own = caption_path(picture, self.config.caption_extension)
        if picture.parent not in self._beside:
            found: dict[str, list[Path]] = {}
            for path in _of_endings(picture.parent, CAPTION_ENDINGS):
                found.setdefault(key(path.name), []).append(path)
            self._beside[picture.parent] = found
        known = self._beside[picture.parent]
        names = {key(f"{name}{ending}") for name in (picture.stem, picture.name) for ending in CAPTION_ENDINGS}
        return sorted(path for name in names for path in known.get(name, ()) if path != own)

    def notes(self) -> list[str]:
        """One sentence for each thing to know."""
        said = []
        for (encoding, guessed), names in self._encodings.items():
            if guessed:
                said.append(
                    f"captions were read as {encoding.upper()}, a guess by their letters: {some(names)}. If it is right, set "
                    f"caption_encoding to {encoding}, else to the right one."
                )
            else:
                said.append(f"captions are in {encoding.upper()}: {some(names)}.")
        if self._lines and self.config.caption_lines == "alternatives":
            said.append(f"captions of several lines, of which every sighting takes one: {some(self._lines)}.")
        elif self._lines and self.config.caption_lines == "one text":
            said.append(
                f"captions of several lines, read as one text: {some(self._lines)}. Set caption_lines to alternatives if each "
                "line is a caption of its own."
            )
        if self._json:
            other = f"; passed over: {', '.join(map(repr, self._json_passed))}" if self._json_passed else ""
            said.append(f"captions in JSON stand under {', '.join(map(repr, self._json))}{other}.")
        return said

    def _guess(self, path: Path) -> str | None:
        kind = (path.parent, path.suffix.lower())
        if kind not in self._guesses:
            self._guesses[kind] = guess(self._unclear(*kind))
        return self._guesses[kind]

    @staticmethod
    def _unclear(folder: Path, ending: str) -> bytes:
        """The beginning of all text in the folder whose encoding is not certain."""
        pool = bytearray()
        for path in _of_endings(folder, (ending,)):
            with suppress(OSError, Unreadable):
                data = read_limited(path, MAX_BYTES)
                pool += data + b"\n" if b"\0" not in data and decoded(data) is None else b""
            if len(pool) >= SAMPLE:
                break
        return bytes(pool)


def _of_endings(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The folder's files of these endings, whatever their case, by name."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
    except OSError:
        return []
