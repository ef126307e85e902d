"""Tags of a caption, and their statistics as other trainers store them in their files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from .samples import Dataset, Subset, one_each
from .words import parts

NUMBERED = re.compile(r"\d+_")


def folder_name(subset: Subset) -> str:
    """The last part of a subset's folder."""
    return PurePosixPath(subset.config.folder).name


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
        for sample in one_each(subset.samples):
            for line in (sample.caption or "").splitlines():
                counts.update(tag.lower() for tag in parts(line))
    return {name: dict(counts.most_common()) for name, counts in out.items()}
