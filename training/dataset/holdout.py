"""Validation split: which pictures are never trained on."""

from __future__ import annotations

from ..seeding import rank
from .samples import Dataset, Subset


def chosen(subset: Subset) -> frozenset[str]:
    """``origin`` of the pictures that the subset's validation share holds out: ``how_many`` of them.

    Those with the smallest SHA-256 of "<validation seed>:<key>", so that the choice depends on neither the run's seed nor the
    order of the files, a picture that is added changes at most one place, and subsets of the same pictures choose alike.
    """
    keys = {sample.origin for sample in subset.samples}
    seed = subset.config.validation_seed
    ranked = sorted(keys, key=lambda key: rank(seed, key))
    return frozenset(ranked[: how_many(subset.config.validation_share, len(keys))])


def how_many(share: float, pictures: int) -> int:
    """round(share x pictures), but at least one and never all, as far as that is possible; 0 if the share is."""
    return min(max(1, round(share * pictures)), pictures - 1) if share > 0 and pictures else 0


def remarks(subset: Subset) -> list[str]:
    """A sentence where the share cannot be kept."""
    share, pictures = subset.config.validation_share, len({sample.origin for sample in subset.samples})
    held = how_many(share, pictures)
    if not share or not pictures or (held and held == round(share * pictures)):
        return []
    if not held:
        return [f"validation share: nothing is held out, since {subset.config.folder} has only one picture that differs."]
    return [f"validation share: {share:g} of {pictures} pictures would be {share * pictures:.2g}, so {held} is held out."]


def held_out(dataset: Dataset) -> frozenset[str]:
    """``origin`` of every picture that is held out: what one subset validates with, no other subset trains on."""
    out: frozenset[str] = frozenset()
    for subset in dataset.subsets:
        everything = subset.config.role == "validation"
        out |= {sample.origin for sample in subset.samples} if everything else chosen(subset)
    return out
