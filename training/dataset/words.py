"""Words and tags in captions of any script: where a word begins and ends, and what separates tags."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

COMMAS = ",，、､،"
"""What separates tags: the comma, the full-width one, the ideographic ones, the Arabic one."""
ESCAPED, BRACKET = re.compile(r"\\([()\[\]])"), re.compile(r"[()\[\]]")
SMILES = ":;=8"
"""A round bracket behind one of these may be a mouth: ``:)`` and ``:(`` are tags."""
_SPACED_BY_THEMSELVES = {",": ", ", "،": "، "}
# (first, last) of the scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, ideographs and kana.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x3FFFF),
)  # fmt: skip
_STARTS = [first for first, _ in _UNSPACED]
JOINERS = "\u200c\u200d"
"""What joins two characters of several scripts, and two emoji to one."""
_GO_ON = frozenset("ーｰっゃゅょぁぃぅぇぉッャュョァィゥェォﾞﾟ々")
"""Letters that never begin a word."""
_PARTICLES = frozenset(
    "이 가 은 는 을 를 의 에 와 과 도 로 으로 만 들 들이 들은 들을 들의 들과 들에 들도".split()
    + "에서 에게 께서 부터 까지 처럼 보다 마다 이나 나 랑 이랑 하고 이다 인".split()
)
"""Korean endings that are written at a noun without a space."""


def parts(text: str) -> list[str]:
    """What stands between the commas, without empty parts and outer spaces.

    A comma within a pair of round brackets, escaped or not, parts nothing: ``name (series, 2nd)`` is one tag, and
    ``(red, wet:1.2)`` one weight. A pair of two mouths, and a bracket without its partner, hold nothing together.
    """
    inside = _bracketed(text)
    cuts = [-1, *(i for i, character in enumerate(text) if character in COMMAS and i not in inside), len(text)]
    pieces = (text[start + 1 : end].strip() for start, end in pairwise(cuts))
    return [piece for piece in pieces if piece]


def _bracketed(text: str) -> set[int]:
    """The places of all commas within pairs of round brackets."""
    opened: list[int] = []
    commas: list[int] = []
    inside: set[int] = set()
    for i, character in enumerate(text):
        if character in COMMAS:
            commas.append(i)
        elif character == "(":
            opened.append(i)
        elif character == ")" and opened:
            start = opened.pop()
            if not (_is_mouth(text, start) and _is_mouth(text, i)):
                while commas and commas[-1] > start:
                    inside.add(commas.pop())
    return inside


def _is_mouth(text: str, place: int) -> bool:
    return place > 0 and text[place - 1] in SMILES


def joined(tags: Iterable[str], like: str = "") -> str:
    """Tags with commas between them, of the only kind that ``like`` has, else ", "."""
    used = {comma for comma in COMMAS if comma in like}
    comma = used.pop() if len(used) == 1 else ","
    return _SPACED_BY_THEMSELVES.get(comma, comma).join(tags)


def composed(text: str) -> str:
    """Letters and their accents as single characters (NFC): files from different systems write "é" in two ways."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def forms(word: str) -> list[str]:
    """``word`` with its brackets as they are, plain, and escaped: ``name (series)`` is ``name \\(series\\)`` among booru tags."""
    plain = ESCAPED.sub(r"\1", word)
    return list(dict.fromkeys((word, plain, BRACKET.sub(r"\\\g<0>", plain))))


def word_starts(text: str, word: str) -> Iterator[int]:
    """Where ``word`` stands in ``text`` as a whole word, from left to right without overlaps; both are ``composed``.

    In scripts without spaces every place counts. A Korean noun may have its particle behind it.
    """
    at = text.find(word) if word else -1
    while at >= 0:
        if whole_word(text, at, at + len(word)):
            yield at
            at = text.find(word, at + len(word))
        else:
            at = text.find(word, at + 1)


def whole_word(text: str, start: int, end: int) -> bool:
    """Whether no word goes on across either end of ``text[start:end]``."""
    before = start > 0 and _belong(text[start - 1], text[start])
    after = end < len(text) and _belong(text[end - 1], text[end])
    return not before and (not after or _has_particle(text, end))


def _has_particle(text: str, end: int) -> bool:
    if not (_hangul(text[end - 1]) and _hangul(text[end])):
        return False
    run = text[end : end + 4]
    length = next((i for i, letter in enumerate(run) if not _hangul(letter)), len(run))
    return run[:length] in _PARTICLES


def _belong(left: str, right: str) -> bool:
    """Whether two neighbouring characters are of one word."""
    if left in JOINERS or right in JOINERS or _changes_emoji(right):
        return not (left.isspace() or right.isspace())
    if unicodedata.category(right)[0] == "M" or right in _GO_ON:
        return _letter(left)
    return _letter(left) and _letter(right) and not (_unspaced(left) or _unspaced(right))


def _changes_emoji(character: str) -> bool:
    """Whether it makes the emoji before it another one: a skin colour, or the way in which it is drawn."""
    return "\U0001f3fb" <= character <= "\U0001f3ff" or character in "\ufe0e\ufe0f\u20e3"


def _letter(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def _unspaced(character: str) -> bool:
    code = ord(character)
    index = bisect_right(_STARTS, code) - 1
    return index >= 0 and code <= _UNSPACED[index][1]


def _hangul(character: str) -> bool:
    return "가" <= character <= "힣"
