"""Tag statistics of a dataset, as other trainers store them in their files."""

from __future__ import annotations

from collections import Counter

from .samples import Dataset
from .words import parts


def tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    """How often each comma-separated tag occurs, by ``<repeats>_<folder>`` as kohya's tools show it."""
    out: dict[str, dict[str, int]] = {}
    for subset in dataset.subsets:
        tags: Counter[str] = Counter()
        for sample in subset.samples:
            for line in (sample.caption or "").splitlines():
                tags.update(parts(line))
        name = subset.config.folder.rsplit("/", 1)[-1]
        out[f"{subset.repeats}_{name}"] = dict(tags.most_common())
    return out
