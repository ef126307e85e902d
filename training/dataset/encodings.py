"""Encodings of text files: what is certain, what is guessed, and what has to be asked about."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..config import GUESSED
from ..errors import AtelierError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
CODECS = {"windows-874": "cp874", "shift-jis": "cp932", "euc-kr": "cp949"}
"""Names under which Python has the form that Windows writes."""
# First bytes of the signs that everyday text is made of, by which a chance reading is told from a real one.
USUAL = {
    "gb18030": [*range(0xA1, 0xA4), *range(0xB0, 0xD8)],
    "big5": [*range(0xA1, 0xC7)],
    "shift-jis": [*range(0x81, 0x84), *range(0x88, 0x98)],
    "euc-jp": [*range(0xA1, 0xA6), *range(0xB0, 0xD0)],
    "euc-kr": [*range(0xA1, 0xA4), *range(0xB0, 0xC9)],
}
FEWEST = 10
"""Letters beyond ASCII below which nothing is guessed."""
LEAST, AHEAD = 0.1, 0.05
"""How well a reading has to fit a language, from 0 to 1, and by how much better than the next. Tried on sentences of nine
languages in eleven encodings, alone and together: none was read wrongly."""
SAMPLE = 1 << 14
"""Bytes that are looked at for a guess."""


@dataclass(frozen=True)
class Decoded:
    """A text and the encoding in which it was stored."""

    text: str
    encoding: str
    """One that ``encoded`` understands."""
    guessed: bool = False


def codec(encoding: str) -> str:
    return CODECS.get(encoding, encoding)


def decoded(data: bytes, declared: str = "detect") -> Decoded | None:
    """The text if its encoding is certain: by its mark, as UTF-8, by the zeros of UTF-16,
    the escapes of ISO-2022-JP, or as ``declared``; else None."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return _tried(data, name)
    if b"\0" in data:
        return _wide(data)
    if b"\x1b$" in data:  # by which it changes to Japanese; each of its bytes alone is ASCII
        return _tried(data, "iso2022-jp")
    found = _tried(data, "utf-8")
    if found is not None and not (_short_letters(found.text) and declared in USUAL):
        return found
    other = _tried(data, declared) if declared not in ("detect", "utf-8") else None
    return other if other and (found is None or plausible(other.text, declared)) else found


def _short_letters(text: str) -> bool:
    """Whether all letters beyond ASCII take two bytes in UTF-8; East Asian text may be read so by chance: "猫" as "è"."""
    return not text.isascii() and all(letter < "\u0800" for letter in text)


def _doubtful(text: str, guessing: Callable[[], str | None], data: bytes) -> bool:
    """Whether text that is UTF-8 by its bytes may be something else: as its neighbours are, or since no letter is usual."""
    if not _short_letters(text):
        return False
    if not any(letter.isascii() and letter.isalpha() for letter in text) and all(letter < "\u0300" for letter in text):
        return True
    name = guessing()
    other = _tried(data, name) if name in USUAL else None
    return other is not None and plausible(other.text, other.encoding)


def text_of(path: Path, data: bytes, declared: str, guessing: Callable[[], str | None]) -> Decoded:
    """The text of a file; AtelierError naming it if it is none, or if nobody can tell its encoding."""
    found = decoded(data, declared)
    if found is not None and declared == "detect" and found.encoding == "utf-8" and _doubtful(found.text, guessing, data):
        raise AtelierError(
            f"{path}: this file can be read as UTF-8 ({found.text.strip()[:20]}) and in other encodings. Set caption_encoding on "
            "Load Dataset to the one it was saved in, or save it as UTF-8 with a byte order mark."
        )
    if found is not None:
        return found
    if b"\0" in data:
        raise AtelierError(f"{path}: this is no text file (it holds zero bytes). Take it out of the folder, or save it as UTF-8.")
    if declared != "detect":
        raise AtelierError(
            f"{path}: this file is not {declared.upper()}. Set caption_encoding to the encoding that it was saved in, or save it "
            "as UTF-8."
        )
    name = guessing()
    found = _tried(data, name) if name else None
    if found is None or name is None or not plausible(found.text, name):
        raise AtelierError(
            f"{path}: this file is not UTF-8, and nobody can tell for sure in which encoding it was saved. Set caption_encoding "
            "on Load Dataset to that encoding, or save the file as UTF-8."
        )
    return Decoded(found.text, name, True)


def _tried(data: bytes, encoding: str) -> Decoded | None:
    try:
        return Decoded(data.decode(codec(encoding)), encoding)
    except UnicodeDecodeError:
        return None


def _wide(data: bytes) -> Decoded | None:
    """UTF-16 without a mark, where every zero is the same half of its letter; None for what is no text."""
    low, high = data[::2].count(0), data[1::2].count(0)
    found = _tried(data, "utf-16-le" if high else "utf-16-be") if not (low and high) else None
    return found if found and "\0" not in found.text else None


def encoded(text: str, encoding: str) -> bytes | None:
    """The bytes in this encoding, or None if a letter is not in it."""
    try:
        return text.encode(codec(encoding))
    except UnicodeEncodeError:
        return None


def guess(data: bytes) -> str | None:
    """The encoding in which the bytes read as a language, if one fits clearly better than the others; None if nobody can tell."""
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return None
    own = {codecs.lookup(codec(name)).name.replace("-", "_"): name for name in GUESSED if not name.startswith("utf")}
    sample = data[: data.find(b"\n", SAMPLE)] if len(data) > SAMPLE and b"\n" in data[SAMPLE:] else data
    # Languages are only looked for in texts of some length; saying the same again adds no evidence, and takes none away.
    long = b"\n".join([sample] * (1 + 256 // max(1, len(sample))))
    readings: list[tuple[float, str, str]] = []
    for match in from_bytes(long, steps=1, chunk_size=len(long), cp_isolation=list(own)):
        name = own.get(match.encoding)
        found = _tried(data, name) if name else None
        if name and found and plausible(found.text, name):
            readings.append((match.coherence, name, found.text))
    readings.sort(key=lambda reading: -reading[0])
    if not readings or readings[0][0] < LEAST or sum(letter > "\x7f" for letter in readings[0][2]) < FEWEST:
        return None
    best = readings[0]
    if best[1] == "gb18030" and _hangul(data):
        return None
    return None if any(best[0] - one[0] < AHEAD for one in readings[1:] if one[2] != best[2]) else best[1]


def _hangul(data: bytes) -> bool:
    """Whether the bytes are Korean words as well: both are pairs, but Korean keeps to a third of them, and has spaces."""
    found = _tried(data, "euc-kr")
    odd = [letter for letter in found.text if letter > "\x7f"] if found else []
    return bool(odd) and all("가" <= letter <= "힣" or letter < "\u3040" for letter in odd)


def plausible(text: str, encoding: str) -> bool:
    """Whether the text is not obviously something else that happens to be readable in this encoding.

    Wrong readings are made of rare signs, or of capitals where two encodings differ in the case of letters.
    """
    odd = [letter for letter in text if letter > "\x7f"]
    if usual := USUAL.get(encoding):
        return sum(letter.encode(codec(encoding))[0] in usual for letter in odd) >= 0.6 * len(odd)
    inside = any(a.islower() and b.isupper() for a, b in pairwise(text) if b > "\x7f")
    return not inside and sum(letter.isupper() for letter in odd) <= 0.5 * len(odd)


def writable(text: str, encoding: str, declared: str) -> tuple[bytes, str]:
    """(bytes, encoding): in ``encoding`` if it has every letter and is read again as the same text, else UTF-8, with its mark
    where that would be taken for something else."""
    for name in (encoding, "utf-8"):
        data = encoded(text, name)
        found = decoded(data, declared) if data is not None else None
        if data is not None and found is not None and found.text == text:
            return data, name
    return text.encode("utf-8-sig"), "utf-8-sig"
