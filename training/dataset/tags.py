"""Tags of a caption, and their statistics as other trainers store them in their files."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import PurePosixPath

from .samples import Dataset, Subset

NUMBERED = re.compile(r"\d+_")


def folder_name(subset: Subset) -> str:
    """The last part of a subset's folder."""
    return PurePosixPath(subset.config.folder).name


SMILES = ":;=8"
"""A round bracket behind one of these may be a mouth: ``:)`` and ``:(`` are tags."""


def parts_of(text: str) -> list[str]:
    """The comma-separated parts of a caption, without blanks around them and empty ones.

    A comma within a pair of round brackets, escaped or not, parts nothing: ``name (series, 2nd)`` is one tag, and
    ``(red, wet:1.2)`` one weight. A pair of two mouths, and a bracket without its partner, hold nothing together.
    """
    inside = _bracketed(text)
    cuts = [-1, *(i for i, character in enumerate(text) if character == "," and i not in inside), len(text)]
    parts = (text[start + 1 : end].strip() for start, end in pairwise(cuts))
    return [part for part in parts if part]


def _bracketed(text: str) -> set[int]:
    """The places of all commas within pairs of round brackets."""
    opened: list[int] = []
    commas: list[int] = []
    inside: set[int] = set()
    for i, character in enumerate(text):
        if character == ",":
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


def tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    """How many captions have each comma-separated tag, in lower case, by folder as kohya's tools show it: ``<repeats>_<name>``.

    A folder whose own name begins so keeps that. One that comes twice is counted once, folders of one name together.
    """
    out: dict[str, Counter[str]] = {}
    seen = set[str]()
    for subset in dataset.subsets:
        name = folder_name(subset)
        name = name if NUMBERED.match(name) else f"{subset.repeats}_{name}"
        counts = out.setdefault(name, Counter())
        if subset.config.folder in seen:
            continue
        seen.add(subset.config.folder)
        for sample in subset.samples:
            counts.update(tag.lower() for tag in parts_of(sample.caption or ""))
    return {name: dict(counts.most_common()) for name, counts in out.items()}
