"""Card of a LoRA: what its file says of itself to people, to sites and to model managers (the ``modelspec`` fields)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..config.refusal import refuse, text_of
from ..dataset.words import parts

LONGEST = 2000
"""Characters of a field."""
WIDGET = "about"
FEWEST = 3
"""Captions; of fewer it says little that all begin alike."""


@dataclass(frozen=True)
class Card:
    """Texts for people; an empty one is left out of the file."""

    title: str = ""
    """Empty: the run's name."""
    trigger: str | None = None
    """None: what every caption begins with; empty: there is none."""
    description: str = ""
    author: str = ""
    license: str = ""
    tags: str = ""
    """Between commas."""
    usage_hint: str = ""

    @classmethod
    def read(cls, text: str) -> Card:
        """From lines such as ``author: Ada``; a line that begins with no field's name goes on with the one before.

        AtelierError for a name that is none, for one that is given twice, and for texts that are too long.
        """
        names, found, last = [field.name for field in fields(cls)], dict[str, str](), ""
        for line in text_of(WIDGET, text).splitlines():
            begin, colon, rest = re.sub("[:\uff1a]", ":", line, count=1).partition(":")  # as it is typed in Chinese and Japanese
            name = begin.strip().lower().replace(" ", "_")
            if colon and name in names:
                refuse(name in found, f"{WIDGET}: {name!r} is given twice; write it once.")
                found[name], last = rest.strip(), name
            elif line.strip():
                refuse(
                    not last,
                    f"{WIDGET}: {line.strip()[:40]!r} says nothing known. Begin a line with {', '.join(names)} and a colon.",
                )
                found[last] = f"{found[last]}\n{line.strip()}".strip()
        for name, value in found.items():
            refuse(len(value) > LONGEST, f"{WIDGET}: {name} has {len(value)} characters; use at most {LONGEST}.")
        if "tags" in found:
            found["tags"] = ", ".join(parts(found["tags"].replace("\n", ", ")))
        return cls(**found)

    def fields(self) -> dict[str, str]:
        """By the names of the specification, but for the title."""
        named = {
            "trigger_phrase": self.trigger, "description": self.description, "author": self.author, "license": self.license,
            "tags": self.tags, "usage_hint": self.usage_hint,
        }  # fmt: skip
        return {f"modelspec.{name}": value for name, value in named.items() if value}


NO_CARD = Card()


def common_front(captions: Iterable[str]) -> str:
    """The part between commas with which every caption begins: probably the trigger word; empty if there is none, or hardly any
    caption."""
    fronts = [next(iter(parts(caption)), "") for caption in captions]
    return fronts[0] if len(fronts) >= FEWEST and len(set(fronts)) == 1 else ""
