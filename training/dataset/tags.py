"""Tag statistics of a dataset, as other trainers store them in their files."""

from __future__ import annotations

from collections import Counter

from .samples import Dataset


def tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    """How often each comma-separated tag occurs, by ``<repeats>_<folder>`` as kohya's tools show it."""
    out: dict[str, dict[str, int]] = {}
    for subset in dataset.subsets:
        tags: Counter[str] = Counter()
        for sample in subset.samples:
            tags.update(tag.strip() for tag in (sample.caption or "").split(",") if tag.strip())
        name = subset.config.folder.rsplit("/", 1)[-1]
        out[f"{subset.repeats}_{name}"] = dict(tags.most_common())
    return out
