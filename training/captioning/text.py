"""Caption text processing: pure functions, and ``TextWork``, which applies them in order.

A caption is taken as parts between commas wherever tags are meant; the commas may be those of Chinese, Japanese or Arabic. Parts
are the same when they differ only in case, spaces, underscores, the width of letters, or the way in which accents are stored. A
function that finds nothing to do gives the text back exactly as it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..config.wildcards import Wildcards
from ..dataset.captions import with_prefix, with_trigger
from ..dataset.words import COMMAS, composed, joined, parts, word_starts
from ..errors import AtelierError

Order = Literal["as written", "by frequency"]
ORDERS: tuple[Order, ...] = ("as written", "by frequency")
WORD = re.compile(r"[^\W_]{2}")
"""Two letters or digits in a row. A tag without them, such as ^_^ or o_o, is a face."""
ARROW = "->"
NARROW = {0x3000: " ", **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}}
"""Full-width letters and signs as the usual ones."""
GAPS = re.compile("[ _]+")
PIECES = re.compile(f"[{COMMAS}]|[^{COMMAS}]+")


def same(part: str) -> str:
    """The form by which two parts are compared; a face such as ^_^ is only itself."""
    part = composed(part).translate(NARROW)
    plain = part.replace("_", " ") if WORD.search(part) else part
    return composed(" ".join(plain.split()).casefold())


def spaced(text: str) -> str:
    """Underscores as spaces, except in faces: "long_hair, ^_^" -> "long hair, ^_^"."""
    if "_" not in text:
        return text
    return "".join(piece.replace("_", " ") if WORD.search(piece) else piece for piece in PIECES.findall(text))


def parse_tags(text: str) -> tuple[str, ...]:
    """Tags between commas or line ends."""
    return tuple(tag for line in text.splitlines() for tag in parts(line))


def parse_rules(text: str) -> tuple[tuple[str, str], ...]:
    """(old, new) for every line "old -> new"; new may be empty. AtelierError naming the widget and the line."""
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        old, arrow, new = (piece.strip() for piece in line.partition(ARROW))
        if not line.strip():
            continue
        if not arrow or not old:
            raise AtelierError(f"replace: line {number} ({line.strip()!r}) is not of the form 'old -> new'. Write it like that.")
        rules.append((old, new))
    return tuple(rules)


def replaced(text: str, rules: Sequence[tuple[str, str]]) -> str:
    """Every rule in turn, on whole words only: ("cat", "dog") leaves "category" alone. Gaps that arise are closed.

    Scripts without spaces between words have no such border, so there every occurrence counts.
    """
    for old, new in rules:
        whole, word = composed(text), composed(old)
        pieces, end = [], 0
        for start in word_starts(whole, word):
            pieces += [whole[end:start], new]
            end = start + len(word)
        if pieces:
            changed = "".join([*pieces, whole[end:]])
            text = changed if new or changed == text else closed(changed)
    return text


def closed(text: str) -> str:
    """The text without the empty parts, double spaces and spaces before commas that a removal leaves."""
    return joined((" ".join(part.split()) for part in parts(text)), like=text)


def fits(tags: Sequence[str]) -> Callable[[str], bool]:
    """Whether a part is one of ``tags``; ``*`` in a tag stands for any letters: "* hair" fits "long hair"."""
    plain = {same(tag) for tag in tags if "*" not in tag}
    # Whether the whole is a face cannot be seen in a part of it, so beside a star an underscore fits a space, too.
    patterns = [Wildcards(GAPS.sub(" ", composed(composed(tag).translate(NARROW).casefold()))) for tag in tags if "*" in tag]

    def one(part: str) -> bool:
        form = same(part)
        return form in plain or (bool(patterns) and any(p.matches(GAPS.sub(" ", form)) for p in patterns))

    return one


def remover(tags: Sequence[str]) -> Callable[[str], str]:
    """What gives a text without the parts that one of ``tags`` fits, see ``fits``."""
    unwanted = fits(tags)

    def without_them(text: str) -> str:
        found = parts(text)
        kept = [part for part in found if not unwanted(part)]
        return text if len(kept) == len(found) else joined(kept, like=text)

    return without_them


def without(text: str, tags: Sequence[str]) -> str:
    """The text without the parts that one of ``tags`` fits."""
    return remover(tags)(text)


def deduplicated(text: str) -> str:
    """Every part once, where it stands first."""
    found = parts(text)
    first: dict[str, str] = {}
    for part in found:
        first.setdefault(same(part), part)
    return text if len(first) == len(found) else joined(first.values(), like=text)


def appended(text: str, more: str) -> str:
    """``text`` with those parts of ``more`` that it has not got yet, so that appending twice is appending once."""
    known = {same(part) for part in parts(text)}
    new = [part for part in parts(more) if same(part) not in known]
    if not text.strip():
        return more
    return joined([text.rstrip().rstrip(COMMAS).rstrip(), *new], like=text) if new else text


def by_frequency(texts: Sequence[str]) -> list[str]:
    """Every text with its parts ordered by the number of texts that have them, most frequent first; ties stay in order."""
    counts = Counter(tag for text in texts for tag in {same(part) for part in parts(text)})
    out = []
    for text in texts:
        found = parts(text)
        ordered = sorted(found, key=lambda part: -counts[same(part)])
        out.append(text if ordered == found else joined(ordered, like=text))
    return out


def repeats(text: str) -> bool:
    """Whether a model has lost itself: the same one to six words, or the same letters, four times or more in a row."""
    words = text.casefold().replace(",", " ").split()
    if len(words) < 4:
        words = list(text.casefold())
    return any(
        all(words[at + i] == words[at + i % size] for i in range(4 * size))
        for size in range(1, 7)
        for at in range(len(words) - 4 * size + 1)
    )


def with_suffix(suffix: str, caption: str) -> str:
    """``suffix`` as it stands behind the caption, once."""
    return caption if not suffix or composed(caption).endswith(composed(suffix)) else caption + suffix


def _without_front(text: str, front: str) -> str:
    """The text without ``front``, however accents are stored; exactly the text if it does not begin so."""
    whole, start = composed(text), composed(front)
    return whole[len(start) :] if start and whole.startswith(start) else text


@dataclass(frozen=True)
class TextWork:
    """What is done to every caption: first its body, then the frame of prefix, suffix and trigger word around it."""

    trigger: str = ""
    prefix: str = ""
    suffix: str = ""
    replace: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    deduplicate: bool = False
    spaces: bool = False
    """Underscores become spaces."""
    order: Order = "as written"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise AtelierError(f"order: {self.order!r} is not known; choose {' or '.join(map(repr, ORDERS))}.")

    def bare(self, text: str) -> str:
        """The text without a frame that an earlier run put around it."""
        text, trigger = text.strip(), self.trigger.strip().rstrip(COMMAS).rstrip()
        alone = (trigger, joined(part for part in (trigger, f"{self.prefix}{self.suffix}".strip()) if part))
        if composed(text) in map(composed, alone):
            return ""
        text = _without_front(text, f"{trigger}, ") if trigger else text
        text = _without_front(text, self.prefix.lstrip())
        suffix, whole = composed(self.suffix.rstrip()), composed(text)
        return (whole.removesuffix(suffix) if suffix and whole.endswith(suffix) else text).strip()

    def body(self, text: str) -> str:
        """Underscores, then replacements, then removals, then duplicates."""
        text = spaced(text) if self.spaces else text
        text = without(replaced(text, self.replace), self.remove)
        return (deduplicated(text) if self.deduplicate else text).strip()

    def framed(self, body: str) -> str:
        """Prefix, body, suffix; the trigger word in front of all."""
        return with_trigger(self.trigger, with_suffix(self.suffix, with_prefix(self.prefix, body)).strip())
