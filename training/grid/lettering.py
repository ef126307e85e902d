"""Text of any language as a picture: Pillow's own letters, and for those that it lacks other fonts that are here.

A letter that no font has is drawn as a question mark, and ``remark`` names it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

Ink = tuple[int, int, int]
Font = ImageFont.FreeTypeFont
PACKAGE = "cvttf-notosanscjk-regular"
"""A package that is a font with the letters of most languages, Chinese, Japanese and Korean among them."""
MODULE = "cvttf_NotoSansCJK_Regular"
NAMES = (
    "DejaVuSans", "NotoSans-Regular", "LiberationSans-Regular", "segoeui", "arial", "Helvetica", "NotoSansCJK-Regular",
    "NotoSansCJK-VF", "NotoSansCJKsc-Regular", "NotoSansCJKsc-VF", "NotoSansCJKjp-Regular", "NotoSansCJKjp-VF",
    "NotoSansCJKtc-Regular", "NotoSansCJKtc-VF", "NotoSansCJKkr-Regular", "NotoSansCJKkr-VF", "NotoSansSC-Regular",
    "NotoSansJP-Regular", "NotoSansKR-Regular", "SourceHanSans-Regular", "msyh", "YuGothM", "meiryo", "msgothic", "malgun",
    "simsun", "PingFang", "Hiragino Sans GB", "ヒラギノ角ゴシック W3", "AppleSDGothicNeo", "Arial Unicode", "wqy-microhei",
    "wqy-zenhei", "DroidSansFallbackFull", "DroidSansFallback", "ipag", "ipagp", "TakaoGothic", "NanumGothic",
    "NotoSansArabic-Regular", "NotoSansHebrew-Regular", "NotoSansDevanagari-Regular", "NotoSansThai-Regular", "leelawui",
    "Nirmala", "unifont",
)  # fmt: skip
"""Upright fonts of the usual systems by their files' names, the first that has a letter draws it."""
SUFFIXES = (".ttf", ".otf", ".ttc")
NO_LETTER = "\U0010fffe"
"""Never given to a letter, so it shows what a font draws for one that it lacks."""
UNKNOWN = "?"
NAMED = 20
"""Letters that a remark names."""


def folders() -> list[Path]:
    """Where this system has its fonts; without the person's own where nobody says whose they are, as in some containers."""
    if sys.platform == "win32":
        system = [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
        local = os.environ.get("LOCALAPPDATA")
        own = [Path(local) / "Microsoft" / "Windows" / "Fonts"] if local else _in_home("AppData/Local/Microsoft/Windows/Fonts")
    elif sys.platform == "darwin":
        system, own = [Path("/System/Library/Fonts"), Path("/Library/Fonts")], _in_home("Library/Fonts")
    else:
        system = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts")]
        own = _in_home(".local/share/fonts", ".fonts")
    return system + own


def _in_home(*names: str) -> list[Path]:
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry of the user
        return []
    return [home / name for name in names]


def _alike(stem: str) -> str:
    """A font file's name without what systems write in different ways: accents in two parts, upper and lower case."""
    return unicodedata.normalize("NFC", stem).casefold()


@lru_cache(maxsize=1)
def files() -> tuple[Path, ...]:
    """Font files to look for letters in, in the order of ``NAMES``, behind the package's where it is installed."""
    wanted = {_alike(name) for name in NAMES}
    found: dict[str, Path] = {}
    for folder in folders():
        for parent, _, names in os.walk(folder):
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in SUFFIXES and _alike(stem) in wanted:
                    found.setdefault(_alike(stem), Path(parent) / name)
    return (*_packaged(), *(found[name] for name in map(_alike, NAMES) if name in found))


def _packaged() -> list[Path]:
    """The package's font, without running anything of the package."""
    spec = importlib.util.find_spec(MODULE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return sorted(path for place in places for path in Path(place).glob("*.otf"))


@dataclass(frozen=True)
class Lettering:
    """Letters of one height."""

    size: int
    """Pixels."""

    @cached_property
    def own(self) -> Font:
        """Pillow's, so that a grid in English looks the same on every system."""
        font = ImageFont.load_default(self.size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType, so it cannot draw labels")
        return font

    def _font_of(self, letter: str) -> Font | None:
        """The first font that has the letter; None if none has it."""
        if _is_own(letter):
            return self.own
        path = _file_with(letter)
        return _opened(path, self.size) if path is not None else None

    def _runs(self, text: str) -> Iterator[tuple[Font, str]]:
        """The text in parts that one font draws; marks stay with the letter that they belong to."""
        if text.isascii():
            yield self.own, text
            return
        current, part = self.own, ""
        for letter in unicodedata.normalize("NFC", text):
            if part and _is_mark(letter):
                part += letter
                continue
            font = self._font_of(letter)
            if font is None:
                font, letter = self.own, UNKNOWN
            if font is not current and part:
                yield current, part
                part = ""
            current, part = font, part + letter
        if part:
            yield current, part

    def length(self, text: str) -> float:
        """Width in pixels."""
        return sum(font.getlength(part) for font, part in self._runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, ink: Ink, anchor: str = "la") -> None:
        """As ``ImageDraw.text``; ``anchor``: l, m or r, then a (top), m or s (baseline) of these letters, on one baseline."""
        runs = list(self._runs(text))
        if all(font is self.own for font, _ in runs):
            draw.text(place, "".join(part for _, part in runs), ink, self.own, anchor=anchor)
            return
        ascent, descent = self.own.getmetrics()
        x = place[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * self.length(text)
        y = place[1] + {"a": float(ascent), "m": (ascent - descent) / 2, "s": 0.0}[anchor[1]]
        for font, part in runs:
            draw.text((x, y), part, ink, font, anchor="ls")
            x += font.getlength(part)


@lru_cache(maxsize=64)
def lettering(size: int) -> Lettering:
    return Lettering(size)


@lru_cache(maxsize=64)
def _opened(path: Path, size: int) -> Font:
    return ImageFont.truetype(str(path), size)


def _is_mark(letter: str) -> bool:
    """Whether it only changes the letter before it."""
    return bool(unicodedata.combining(letter)) or letter in "\u200d\ufe0e\ufe0f"


def _has(font: Font, letter: str) -> bool:
    if letter.isspace():
        return True
    return _shape(font, letter) != _shape(font, NO_LETTER)


def _shape(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@lru_cache(maxsize=4096)
def _is_own(letter: str) -> bool:
    return letter.isascii() or _has(lettering(16).own, letter)


@lru_cache(maxsize=4096)
def _file_with(letter: str) -> Path | None:
    for path in files():
        try:
            if _has(_opened(path, 16), letter):
                return path
        except OSError:
            continue  # no font, whatever its name says
    return None


def missing(texts: Iterable[str]) -> list[str]:
    """The letters of some texts that no font here has, each once, in their order."""
    one = lettering(16)
    letters = dict.fromkeys(letter for text in texts for letter in unicodedata.normalize("NFC", text))
    marks = "\u200d\ufe0e\ufe0f"
    return [
        letter for letter in letters if not unicodedata.combining(letter) and letter not in marks and one._font_of(letter) is None
    ]


def remark(texts: Iterable[str]) -> list[str]:
    """A sentence on letters that are drawn as question marks, if there are any."""
    lost = missing(texts)
    if not lost:
        return []
    named = " ".join(letter if letter.isprintable() else f"U+{ord(letter):04X}" for letter in lost[:NAMED])
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return [
        f"Letters: no font on this computer has {named}{more}; on the page a question mark stands for each. "
        f"`pip install {PACKAGE}` brings most, or install a font such as Noto Sans CJK."
    ]
