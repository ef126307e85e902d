"""Recommended epoch by the numbers, and why: a hint beside the pictures, never more, and worded as one.

The rule is that of the published recipes: the best epoch is one that is good at a full 1.0. One that is good at 0.8 and
over-fitted at 1.0 is worse than it looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .score import Scale, Score

FULL = 1.0
CLOSE = 0.05
"""Shares of the best gain that don't count as a difference."""
KEPT = 0.5
"""An epoch whose agreement with the pictures without a LoRA falls below this share of the others' best may be rigid."""


@dataclass(frozen=True)
class Judged:
    """What is known of one epoch."""

    label: str
    scores: Mapping[float, Score]
    """By strength, mean over all pages; empty where no pictures were compared."""
    held_out: float | None = None
    """Fixed loss of the held-out pictures."""
    training: float | None = None
    """Fixed loss of the trained pictures."""
    run: str = ""
    """The training that it is of."""
    is_mean: bool = False
    """It is the mean of several epochs, which is shown beside them and never recommended: it was not trained to be one."""


@dataclass(frozen=True)
class Advice:
    """The epoch (its label; None where nothing speaks for one) and the reason in one or two sentences."""

    epoch: str | None
    reason: str


def merit(score: Score, scale: Scale) -> float:
    """What was gained in likeness to the dataset, less what is nearer to a single picture than these are among each other."""
    return (score.likeness - scale.control.likeness) - max(0.0, score.nearest - scale.usual_nearest)


def recommend(epochs: Sequence[Judged], scale: Scale | None) -> Advice:
    """The epoch that is best at 1.0, among those that are not better at less; ``epochs`` first to last.

    Without scores the lowest held-out loss decides; where epochs are alike, the lower held-out loss, else the earlier one.
    """
    if epochs and all(epoch.is_mean for epoch in epochs):
        return Advice(None, "Only means of epochs are shown, and a hint is one among epochs; add all to which_epochs.")
    epochs = [epoch for epoch in epochs if not epoch.is_mean]
    scored = [epoch for epoch in epochs if epoch.scores]
    if not scored or scale is None:
        return _by_loss(epochs)
    full = [epoch for epoch in scored if FULL in epoch.scores]
    if not full:
        return Advice(None, "No cell was drawn at strength 1, by which an epoch is judged; add 1 to strengths.")
    merits = {epoch.label: {s: merit(score, scale) for s, score in epoch.scores.items()} for epoch in full}
    best_gain = max(merits[epoch.label][FULL] for epoch in full)
    if best_gain <= 0:
        return Advice(
            None,
            "At strength 1 no epoch is closer to the dataset than the pictures without a LoRA. If the pictures say so too, train "
            "longer or at a higher rate.",
        )
    margin = CLOSE * best_gain
    too_strong = [epoch for epoch in full if _best_strength(merits[epoch.label], margin) < FULL]
    sound = [epoch for epoch in full if epoch not in too_strong]
    if not sound:
        return Advice(
            None,
            "Every epoch is better at less than 1, which speaks for over-fitting at full strength. If the pictures say so too, "
            "take an earlier epoch, or train with a lower rate or fewer repeats.",
        )
    top = max(merits[epoch.label][FULL] for epoch in sound)
    alike = [epoch for epoch in sound if merits[epoch.label][FULL] >= top - margin]
    chosen = _first_of(alike)
    return Advice(chosen.label, " ".join(_reasons(chosen, alike, too_strong, merits, scale, margin)))


def _best_strength(merits: Mapping[float, float], margin: float) -> float:
    """The strength of the highest merit up to 1; of such as are alike, the one nearest to 1."""
    usual = {s: m for s, m in merits.items() if 0 < s <= FULL}
    top = max(usual.values())
    return max(s for s, m in usual.items() if m >= top - margin)


def _first_of(alike: Sequence[Judged]) -> Judged:
    if all(epoch.held_out is not None for epoch in alike):
        return min(alike, key=lambda epoch: (epoch.held_out, alike.index(epoch)))
    return alike[0]


def _reasons(
    chosen: Judged,
    alike: Sequence[Judged],
    too_strong: Sequence[Judged],
    merits: Mapping[str, Mapping[float, float]],
    scale: Scale,
    margin: float,
) -> list[str]:
    score = chosen.scores[FULL]
    gain = score.likeness - scale.control.likeness
    over = score.nearest - scale.usual_nearest
    nearness = f"but {over:.2f} nearer to one of them" if over > 0 else "no nearer to any one of them"
    out = [
        f"{chosen.label} seems good at a full 1: its pictures are {gain:.2f} closer to the dataset than those without a LoRA, "
        f"and {nearness} than the training pictures are to each other."
    ]
    if others := [epoch.label for epoch in alike if epoch is not chosen]:
        measured = all(epoch.held_out is not None for epoch in alike)
        of_one = all(epoch.run == chosen.run for epoch in alike)
        least = "it was trained less, which usually keeps more of the model" if of_one else "nothing measured tells them apart"
        because = "the held-out loss is lower" if measured else least
        out.append(f"{_list(others)} {'is' if len(others) == 1 else 'are'} about as good; {because}.")
    if too_strong:
        best = _best_strength(merits[too_strong[-1].label], margin)
        out.append(f"{_list([e.label for e in too_strong])}: better at {best:g} than at 1, so perhaps over-fitted.")
    usual = max(epoch.scores[FULL].agreement for epoch in alike)
    if score.agreement < KEPT * usual:
        out.append("It seems to leave little of what the model would draw without it; look at prompts outside the dataset.")
    return out


def _by_loss(epochs: Sequence[Judged]) -> Advice:
    held = [(epoch.held_out, epoch) for epoch in epochs if epoch.held_out is not None]
    if len(held) >= 2:
        lowest = min(held, key=lambda pair: pair[0])
        return Advice(
            lowest[1].label,
            f"{lowest[1].label} has the lowest loss on pictures that were held out ({lowest[0]:.4f}), which says "
            "nothing of how it looks. No pictures were compared.",
        )
    return Advice(
        None,
        "Nothing was measured: connect the dataset, or train with a validation share, and the numbers are told here.",
    )


def _list(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
