"""Scores of a grid's cells: each is embedded once, when it is placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..tensors.finite import is_finite
from .advice import Advice, Judged, recommend
from .features import MOST_PICTURES, Embedder, embed_files, embed_pictures
from .plan import Axes
from .score import Scale, Score, mean_score, mean_scores, score, usual_nearest

Place = tuple[int, int]
"""(column, row); column 0 is the control."""


class Judge:
    """Compares cells with the dataset and with the control of their page."""

    def __init__(self, embedder: Embedder, pictures: Sequence[Path]):
        self.embedder, self.pictures = embedder, pictures
        self._dataset: Tensor | None = None
        self._controls: dict[int, Tensor] = {}
        self.scores: dict[int, dict[Place, Score]] = {}
        """By page."""

    @property
    def dataset(self) -> Tensor:
        """(N, D); read when the first cell is looked at."""
        if self._dataset is None:
            found = embed_files(self.embedder, self.pictures)
            self._dataset = found[found.isfinite().all(dim=1)] if len(found) else found
        return self._dataset

    def see(self, page: int, place: Place, picture: Image.Image) -> None:
        """Looks at a cell; the control of a page must come first, or the page has no numbers."""
        if not len(self.dataset):
            return
        seen = embed_pictures(self.embedder, [picture])[0]
        if not is_finite(seen):
            return
        if place[0] == 0:
            self._controls[page] = seen
        if page in self._controls:
            self.scores.setdefault(page, {})[place] = score(seen, self._controls[page], self.dataset)

    def scale(self, page: int | None = None) -> Scale | None:
        """Of all pages or of one; None as long as nothing can be compared."""
        pages = self.scores.values() if page is None else [self.scores.get(page, {})]
        controls = [scores[0, 0] for scores in pages if (0, 0) in scores]
        return Scale(usual_nearest(self.dataset), mean_score(controls)) if controls else None

    def caption(self, page: int, place: Place) -> str:
        """``0.71 / 0.83 / 0.55``."""
        found = self.scores.get(page, {}).get((0, 0) if place[0] == 0 else place)
        return f"{found.likeness:.2f} / {found.nearest:.2f} / {found.agreement:.2f}" if found else ""


Losses = Mapping[int, tuple[float | None, float]]
"""Step -> (held-out loss, loss of the trained share)."""


def judged(axes: Axes, losses: Mapping[str, Losses], judge: Judge | None, page: int | None = None) -> list[Judged]:
    """What is known of every column, on all pages or on one; ``losses`` by the run's name."""
    pages = [] if judge is None else list(judge.scores.values()) if page is None else [judge.scores.get(page, {})]
    means = mean_scores(pages)
    out = []
    for number, column in enumerate(axes.columns, 1):
        of_run = {} if column.mean_of else losses.get(column.run, {})  # nobody has measured the loss of a mean
        held_out, training = of_run.get(column.file.step, (None, None))
        scores = {s: means[number, row] for row, s in enumerate(axes.strengths) if (number, row) in means}
        out.append(Judged(column.label, scores, held_out, training, column.run, bool(column.mean_of)))
    return out


def advise(axes: Axes, losses: Mapping[str, Losses], judge: Judge | None) -> Advice:
    """The recommendation for the whole grid, as far as it is drawn; its reason begins with what it is taken from."""
    found = recommend(judged(axes, losses, judge), judge.scale() if judge is not None else None)
    return replace(found, reason=_source(axes, judge) + found.reason)


def advise_page(axes: Axes, losses: Mapping[str, Losses], judge: Judge | None, page: int) -> str:
    """What the numbers of one page alone say, where that is not what all pages together do; else nothing."""
    if judge is None or len(axes.pages) < 2 or not judge.scores.get(page):
        return ""
    own = recommend(judged(axes, losses, judge, page), judge.scale(page))
    if own.epoch == advise(axes, losses, judge).epoch:
        return ""
    return f"This page alone: {own.reason}"


def _source(axes: Axes, judge: Judge | None) -> str:
    """``By colours and edges, all 4 pages together: ``."""
    if judge is None or not judge.scores:
        return ""
    pages = len(axes.pages)
    there = sum(len(scores) for scores in judge.scores.values())
    part = ", as far as it is drawn" if there < axes.cells else ""
    return f"By {judge.embedder.name}{f', all {pages} pages together' if pages > 1 else ''}{part}: "


def compared(judge: Judge | None) -> list[str]:
    """Where not all pictures of the dataset were compared, how many were."""
    if judge is None or not judge.scores or len(judge.dataset) == len(judge.pictures):
        return []
    many = len(judge.pictures) > MOST_PICTURES
    why = "an even share of them" if many else "the others are gone or cannot be opened"
    return [f"Compared were {len(judge.dataset)} of the dataset's {len(judge.pictures)} pictures: {why}."]


def table(axes: Axes, epochs: Sequence[Judged], scale: Scale | None) -> list[str]:
    """The numbers as lines of text: losses, and scores at every strength."""
    lines = []
    for epoch in epochs:
        parts = []
        if epoch.training is not None:
            held = f"held out {epoch.held_out:.4f}, " if epoch.held_out is not None else ""
            parts.append(f"fixed loss: {held}trained {epoch.training:.4f}")
        parts += [
            f"at {s:g}: like the dataset {v.likeness:.2f}, nearest picture {v.nearest:.2f}, like without LoRA {v.agreement:.2f}"
            for s, v in epoch.scores.items()
        ]
        if parts:
            lines.append(f"{epoch.label}: " + "; ".join(parts))
    if scale is not None:
        lines.append(
            f"without LoRA: like the dataset {scale.control.likeness:.2f}, nearest picture {scale.control.nearest:.2f}; "
            f"the training pictures among themselves: nearest {scale.usual_nearest:.2f}"
        )
    return lines
