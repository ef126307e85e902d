"""Validation split: which pictures are never trained on."""

from __future__ import annotations

from ..seeding import rank
from .samples import Dataset, Subset


def chosen(subset: Subset) -> frozenset[str]:
    """Keys of the pictures that the subset's validation share holds out: round(share x pictures), none if the share is 0.

    Those with the smallest SHA-256 of "<validation seed>:<key>", so that the choice depends on neither the run's seed nor the
    order of the files, a picture that is added changes at most one place, and subsets of the same pictures choose alike.
    """
    keys = {sample.key for sample in subset.samples}
    seed = subset.config.validation_seed
    ranked = sorted(keys, key=lambda key: rank(seed, key))
    return frozenset(ranked[: round(subset.config.validation_share * len(keys))])


def held_out(dataset: Dataset) -> frozenset[str]:
    """Keys of every picture that is held out: what one subset validates with, no other subset trains on."""
    out: frozenset[str] = frozenset()
    for subset in dataset.subsets:
        everything = subset.config.role == "validation"
        out |= {sample.key for sample in subset.samples} if everything else chosen(subset)
    return out
