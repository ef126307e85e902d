"""The recommendation: the rule of the recipes, and its reason."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.grid.advice import Judged, merit, recommend
from lora_atelier.training.grid.score import Scale, Score

SCALE = Scale(usual_nearest=0.8, control=Score(likeness=0.3, nearest=0.5, agreement=1.0))


def epoch(number: int, *, held_out: float | None = None, **likeness: float) -> Judged:
    """``s100=0.6`` is a likeness of 0.6 at strength 1; nearest stays harmless."""
    scores = {int(name[1:]) / 100: Score(value, 0.7, 0.6) for name, value in likeness.items()}
    return Judged(f"epoch {number}", scores, held_out, None)


def test_merit_is_likeness_gained_less_what_is_too_near_to_one_picture():
    assert merit(Score(0.5, 0.7, 0), SCALE) == 0.2
    assert merit(Score(0.5, 0.9, 0), SCALE) == 0.2 - (0.9 - 0.8)


def test_the_best_at_full_strength_is_taken():
    found = recommend([epoch(1, s80=0.35, s100=0.4), epoch(2, s80=0.5, s100=0.6), epoch(3, s80=0.45, s100=0.5)], SCALE)
    assert found.epoch == "epoch 2" and "seems good at a full 1" in found.reason and "0.30 closer" in found.reason


def test_one_that_is_better_at_less_is_over_fitted_however_high_it_is():
    over = Judged("epoch 3", {0.8: Score(0.75, 0.7, 0.5), 1.0: Score(0.75, 0.9, 0.3)})
    found = recommend([epoch(1, s80=0.35, s100=0.4), epoch(2, s80=0.5, s100=0.6), over], SCALE)
    assert found.epoch == "epoch 2" and "epoch 3: better at 0.8 than at 1, so perhaps over-fitted" in found.reason


def test_if_all_are_over_fitted_none_is_named():
    found = recommend([epoch(1, s60=0.6, s100=0.4), epoch(2, s60=0.7, s100=0.5)], SCALE)
    assert found.epoch is None and "less than 1" in found.reason


def test_if_nothing_was_learnt_none_is_named():
    found = recommend([epoch(1, s100=0.3), epoch(2, s100=0.29)], SCALE)
    assert found.epoch is None and "train longer" in found.reason


def test_without_strength_one_there_is_nothing_to_judge_by():
    assert "strength 1" in recommend([epoch(1, s60=0.6)], SCALE).reason


def test_alike_epochs_are_told_apart_by_the_held_out_loss_else_the_earlier_wins():
    alike = [epoch(1, s100=0.4), epoch(2, s100=0.6), epoch(3, s100=0.601)]
    found = recommend(alike, SCALE)
    assert found.epoch == "epoch 2" and "epoch 3 is about as good" in found.reason and "trained less" in found.reason
    losses = [0.3, 0.2, 0.1]
    measured = [Judged(e.label, e.scores, loss, loss) for e, loss in zip(alike, losses, strict=True)]
    found = recommend(measured, SCALE)
    assert found.epoch == "epoch 3" and "held-out loss is lower" in found.reason


def test_trainings_beside_each_other_were_not_trained_less():
    alike = [Judged(f"rank {n}", {1.0: Score(0.6, 0.5, 0.9)}, run=f"ink rank {n}") for n in (4, 8)]
    found = recommend(alike, SCALE)
    assert found.epoch == "rank 4" and "nothing measured tells them apart" in found.reason
    assert "trained less" in recommend([replace(one, run="ink") for one in alike], SCALE).reason


def test_a_rigid_epoch_is_told_so():
    rigid = Judged("epoch 2", {1.0: Score(0.6, 0.7, 0.1)})
    other = Judged("epoch 3", {1.0: Score(0.6, 0.7, 0.9)})
    assert "leave little" in recommend([rigid, other], SCALE).reason
    assert "leave little" not in recommend([other, rigid], SCALE).reason


def test_losses_alone_speak_when_no_pictures_were_compared():
    found = recommend([epoch(1, held_out=0.3), epoch(2, held_out=0.2), epoch(3, held_out=0.25)], None)
    assert found.epoch == "epoch 2" and "0.2000" in found.reason and "No pictures" in found.reason
    assert recommend([epoch(1), epoch(2)], None).epoch is None
    assert recommend([], None).epoch is None


scores = st.builds(Score, *[st.floats(-1, 1)] * 3)


@given(
    st.lists(st.dictionaries(st.sampled_from([0.0, 0.5, 0.8, 1.0, 1.2]), scores, max_size=5), max_size=8),
    st.builds(Scale, st.floats(-1, 1), scores),
    st.lists(st.none() | st.floats(0, 1), min_size=8, max_size=8),
)
def test_whatever_the_numbers_are_there_is_a_sentence_and_never_one_that_is_better_at_less(epochs, scale, losses):
    judged = [Judged(f"epoch {i}", s, losses[i], None) for i, s in enumerate(epochs)]
    found = recommend(judged, scale)
    assert found.reason.endswith((".",)) and found.epoch in {None, *(e.label for e in judged)}
    if found.epoch is not None and any(epochs):
        chosen = next(e for e in judged if e.label == found.epoch)
        best = max(merit(e.scores[1.0], scale) for e in judged if 1.0 in e.scores)
        at_full = merit(chosen.scores[1.0], scale)
        assert all(at_full >= merit(s, scale) - 0.05 * best - 1e-9 for strength, s in chosen.scores.items() if 0 < strength <= 1)
