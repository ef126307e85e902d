"""Caption text processing: pure functions, and ``TextWork``, which applies them in order.

A caption is taken as parts between commas wherever tags are meant. Parts are the same when they differ only in case, spaces
and underscores. A function that finds nothing to do gives the text back exactly as it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..dataset.captions import with_prefix, with_trigger
from ..errors import AtelierError

Order = Literal["as written", "by frequency"]
ORDERS: tuple[Order, ...] = ("as written", "by frequency")
WORD = re.compile(r"[^\W_]{2}")
"""Two letters or digits in a row. A tag without them, such as ^_^ or o_o, is a face."""
ARROW = "->"


def parts(text: str) -> list[str]:
    """What stands between the commas, without empty parts and outer spaces."""
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def joined(tags: Iterable[str]) -> str:
    return ", ".join(tags)


def same(part: str) -> str:
    """The form by which two parts are compared; a face such as ^_^ is only itself."""
    plain = part.replace("_", " ") if WORD.search(part) else part
    return " ".join(plain.split()).casefold()


def spaced(text: str) -> str:
    """Underscores as spaces, except in faces: "long_hair, ^_^" -> "long hair, ^_^"."""
    if "_" not in text:
        return text
    return ",".join(piece.replace("_", " ") if WORD.search(piece) else piece for piece in text.split(","))


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
    """Every rule in turn, on whole words only: ("cat", "dog") leaves "category" alone. Gaps that arise are closed."""
    for old, new in rules:
        changed = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new.replace("\\", r"\\"), text)
        text = text if changed == text else (changed if new else closed(changed))
    return text


def closed(text: str) -> str:
    """The text without the empty parts, double spaces and spaces before commas that a removal leaves."""
    return joined(" ".join(part.split()) for part in parts(text))


def pattern(tag: str) -> re.Pattern[str]:
    """A tag as it is compared; ``*`` stands for any letters: "* hair" fits "long hair"."""
    if "*" not in tag:
        return re.compile(re.escape(same(tag)))
    # Whether the whole is a face cannot be seen in a part of it, so here an underscore fits both.
    pieces = [re.split(r"[ _]+", piece) for piece in tag.casefold().split("*")]
    return re.compile(".*".join("[ _]".join(re.escape(word) for word in piece) for piece in pieces))


def without(text: str, tags: Sequence[str]) -> str:
    """The text without the parts that one of ``tags`` fits, see ``pattern``."""
    patterns = [pattern(tag) for tag in tags]
    found = parts(text)
    kept = [part for part in found if not any(one.fullmatch(same(part)) for one in patterns)]
    return text if len(kept) == len(found) else joined(kept)


def deduplicated(text: str) -> str:
    """Every part once, where it stands first."""
    found = parts(text)
    first: dict[str, str] = {}
    for part in found:
        first.setdefault(same(part), part)
    return text if len(first) == len(found) else joined(first.values())


def appended(text: str, more: str) -> str:
    """``text`` with those parts of ``more`` that it has not got yet, so that appending twice is appending once."""
    known = {same(part) for part in parts(text)}
    new = [part for part in parts(more) if same(part) not in known]
    if not text.strip():
        return more
    return joined([text.rstrip().rstrip(",").rstrip(), *new]) if new else text


def by_frequency(texts: Sequence[str]) -> list[str]:
    """Every text with its parts ordered by the number of texts that have them, most frequent first; ties stay in order."""
    counts = Counter(tag for text in texts for tag in {same(part) for part in parts(text)})
    out = []
    for text in texts:
        found = parts(text)
        ordered = sorted(found, key=lambda part: -counts[same(part)])
        out.append(text if ordered == found else joined(ordered))
    return out


def with_suffix(suffix: str, caption: str) -> str:
    """``suffix`` as it stands behind the caption, once."""
    return caption if not suffix or caption.endswith(suffix) else caption + suffix


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
        text, trigger = text.strip(), self.trigger.strip().rstrip(",").rstrip()
        if text in (trigger, joined(part for part in (trigger, f"{self.prefix}{self.suffix}".strip()) if part)):
            return ""
        text = text.removeprefix(f"{trigger}, ") if trigger else text
        return text.removeprefix(self.prefix.lstrip()).removesuffix(self.suffix.rstrip()).strip()

    def body(self, text: str) -> str:
        """Underscores, then replacements, then removals, then duplicates."""
        text = spaced(text) if self.spaces else text
        text = without(replaced(text, self.replace), self.remove)
        return (deduplicated(text) if self.deduplicate else text).strip()

    def framed(self, body: str) -> str:
        """Prefix, body, suffix; the trigger word in front of all."""
        return with_trigger(self.trigger, with_suffix(self.suffix, with_prefix(self.prefix, body)).strip())
