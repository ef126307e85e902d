"""Similarity scores of cells and epochs: pure functions. All similarities are cosines, 1 is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """How one cell, or the mean of several, compares."""

    likeness: float
    """To the dataset: the mean over its pictures."""
    nearest: float
    """To the training picture that it is most like; high where pictures were learnt by heart."""
    agreement: float
    """With the picture of the same prompt and seed without any LoRA; low where the LoRA overrules the prompt."""


@dataclass(frozen=True)
class Scale:
    """What the numbers mean here: the dataset among itself, and the model without any LoRA."""

    usual_nearest: float
    """The training pictures' similarity to the one of the others that each is most like, at the 90th percentile."""
    control: Score
    """The cells without a LoRA, on average."""


def score(cell: Tensor, control: Tensor, dataset: Tensor) -> Score:
    """``cell`` and ``control`` (D,), ``dataset`` (N, D), all rows of length 1."""
    similar = dataset @ cell
    return Score(similar.mean().item(), similar.max().item(), float(cell @ control))


def usual_nearest(dataset: Tensor) -> float:
    """See ``Scale``; 1 for fewer than two pictures, which can be like no other."""
    if len(dataset) < 2:
        return 1.0
    similar = dataset @ dataset.T
    similar.fill_diagonal_(-2)
    return torch.quantile(similar.max(dim=1).values, 0.9).item()


def mean_score(scores: Sequence[Score]) -> Score:
    """Of the same place on several pages; at least one."""
    return Score(
        fmean(s.likeness for s in scores), fmean(s.nearest for s in scores), fmean(s.agreement for s in scores)
    )  # fmt: skip


def mean_scores(pages: Sequence[Mapping[tuple[int, int], Score]]) -> dict[tuple[int, int], Score]:
    """(column, row) -> mean over all pages that have the cell."""
    places = dict.fromkeys(place for page in pages for place in page)
    return {place: mean_score([page[place] for page in pages if place in page]) for place in places}
