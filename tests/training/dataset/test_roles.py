"""Regularisation and validation subsets: doubled sightings, and pictures that are never trained on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.holdout import held_out, how_many, remarks
from lora_atelier.training.dataset.plan import Plan, shares
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset
from lora_atelier.training.errors import AtelierError


def subset(sizes, repeats=1, prefix="a", **values):
    samples = tuple(Sample(Path(f"{prefix}{i}.png"), w, h, None, f"{prefix}{i:062x}") for i, (w, h) in enumerate(sizes))
    return Subset(SubsetConfig("input/test", **{"resolution": 512, **values}), samples, repeats)


def sums(plan):
    """Sightings of an epoch by role."""
    out = Counter()
    for row in plan.bucket_table():
        out[plan.dataset.subsets[row.subset].config.role] += row.sightings
    return out


SQUARE, TALL, WIDE = (512, 512), (300, 600), (600, 300)


@pytest.mark.parametrize(
    ("prior", "name"),
    [
        ([([SQUARE] * 750, 1)], "as many"),
        ([([SQUARE] * 12, 1)], "cycled"),
        ([([SQUARE] * 3000, 1)], "cut"),
        ([([SQUARE] * 40, 1), ([SQUARE, TALL, WIDE] * 7, 3)], "several subsets and buckets"),
    ],
)
def test_regularisation_doubles_the_sightings(prior, name):
    subsets = [subset([SQUARE] * 20 + [TALL] * 10, 25)]
    subsets += [subset(s, r, f"r{i}", role="regularisation") for i, (s, r) in enumerate(prior)]
    plan = Plan(Dataset(tuple(subsets)), 0)
    assert sums(plan) == {"training": 750, "regularisation": 750}
    assert plan.steps_per_epoch == 1500


def test_two_training_and_two_regularisation_subsets_are_counted_together():
    plan = Plan(
        Dataset(
            (
                subset([SQUARE] * 4, 10, "a", batch_size=4),
                subset([SQUARE] * 5, 1, "r", role="regularisation"),
                subset([SQUARE] * 3, 5, "b"),
                subset([SQUARE] * 5, 2, "q", role="regularisation", batch_size=2),
            )
        ),
        0,
    )
    rows = {row.subset: (row.sightings, row.batches) for row in plan.bucket_table()}
    # 55 training sightings; 55 x 5 / 15 = 18.33 and 55 x 10 / 15 = 36.67.
    assert rows == {0: (40, 10), 1: (18, 18), 2: (15, 15), 3: (37, 19)}


def test_a_cut_set_goes_on_where_the_epoch_before_stopped():
    plan = Plan(Dataset((subset([SQUARE] * 4), subset([SQUARE] * 6, 1, "r", role="regularisation"))), 5)
    shown = [sorted(i for b in plan.epoch_batches(e) if b.subset == 1 for i in b.samples) for e in range(3)]
    assert shown == [[0, 1, 2, 3], [0, 1, 4, 5], [2, 3, 4, 5]]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 500), min_size=1, max_size=8))
def test_shares_add_up_and_are_fair(total, weights):
    parts = shares(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) < 1 for part, weight in zip(parts, weights, strict=True))


@st.composite
def mixed(draw):
    shapes = st.lists(st.sampled_from([SQUARE, TALL, WIDE, (700, 500)]), min_size=1, max_size=9)
    batch = st.integers(1, 4)
    train = [
        subset(draw(shapes), draw(st.integers(1, 4)), f"t{i}", batch_size=draw(batch)) for i in range(draw(st.integers(1, 2)))
    ]
    prior = [
        subset(draw(shapes), draw(st.integers(1, 3)), f"r{i}", role="regularisation", batch_size=draw(batch))
        for i in range(draw(st.integers(0, 2)))
    ]
    return Dataset(tuple(train + prior))


@settings(max_examples=60)
@given(mixed(), st.integers(0, 99))
def test_every_sighting_has_its_own_number(dataset, seed):
    """Over three epochs each picture is seen for the 0th, 1st, 2nd ... time, none skipped and none twice."""
    plan = Plan(dataset, seed)
    numbers: dict[tuple[int, int], list[int]] = {}
    for epoch in range(3):
        batches = plan.epoch_batches(epoch)
        assert len(batches) == plan.steps_per_epoch
        for batch in batches:
            for index, number in zip(batch.samples, batch.sightings, strict=True):
                numbers.setdefault((batch.subset, index), []).append(number)
    assert all(sorted(seen) == list(range(len(seen))) for seen in numbers.values())
    most = {(n, i): plan.most_sightings(row, 3) for row, (n, _, members) in enumerate(plan.buckets) for i in members}
    assert all(len(seen) <= most[picture] for picture, seen in numbers.items())
    if any(s.config.role == "regularisation" for s in dataset.subsets):
        assert sums(plan)["training"] == sums(plan)["regularisation"]


def test_a_share_is_held_out_whatever_the_runs_seed_and_never_trained():
    dataset = Dataset((subset([SQUARE, TALL] * 10, 3, validation_share=0.2, batch_size=3),))
    plans = [Plan(dataset, seed) for seed in (0, 1)]
    assert plans[0].validation == plans[1].validation
    held = {i for batch in plans[0].validation for i in batch.samples}
    trained = {i for epoch in range(3) for batch in plans[0].epoch_batches(epoch) for i in batch.samples}
    assert len(held) == 4 and held | trained == set(range(20)) and not held & trained
    assert sums(plans[0]) == {"training": 48}
    assert "held out for validation: 4 pictures" in plans[0].describe()


def test_the_training_share_is_as_large_as_what_is_held_out_and_of_the_trained():
    pictures = subset([SQUARE, TALL] * 10, 3, validation_share=0.2, batch_size=3)
    prior = subset([SQUARE] * 5, 1, "r", role="regularisation")
    plans = [Plan(Dataset((pictures, prior)), seed) for seed in (0, 1)]
    assert plans[0].training_share == plans[1].training_share
    share = {i for batch in plans[0].training_share for i in batch.samples}
    held = {i for batch in plans[0].validation for i in batch.samples}
    assert len(share) == len(held) == 4 and not share & held
    assert all(batch.subset == 0 and len(batch.samples) <= 3 for batch in plans[0].training_share)


@pytest.mark.parametrize(("pictures", "expected"), [(20, 8), (3, 3)])
def test_without_validation_the_training_share_is_eight_pictures_at_most(pictures, expected):
    plan = Plan(Dataset((subset([SQUARE] * pictures, 5),)), 0)
    assert sum(len(batch.samples) for batch in plan.training_share) == expected and plan.validation == ()


def test_another_validation_seed_holds_out_others_and_a_new_picture_moves_at_most_one():
    first, other = (held_out(Dataset((subset([SQUARE] * 40, validation_share=0.25, validation_seed=s),))) for s in (0, 1))
    assert first != other
    more = held_out(Dataset((subset([SQUARE] * 41, validation_share=0.25),)))
    assert len(first - more) <= 1


def test_what_one_subset_validates_with_no_other_trains_on():
    shared = [SQUARE] * 10
    validation = subset(shared[:2], role="validation")
    dataset = Dataset((subset(shared, validation_share=0.3), subset(shared, resolution=256), validation))
    plan = Plan(dataset, 0)
    held = held_out(dataset)
    trained = {dataset.subsets[b.subset].samples[i].key for b in plan.epoch_batches(0) for i in b.samples}
    assert len(held) >= 3 and not held & trained and len(trained) == 10 - len(held)


def test_a_dataset_that_leaves_nothing_to_train_on_is_refused():
    for roles in (["validation"], ["regularisation"], ["training", "validation"]):
        with pytest.raises(AtelierError, match="dataset: no picture is left for training"):
            Plan(Dataset(tuple(subset([SQUARE], role=role) for role in roles)), 0)


def test_the_description_says_what_regularisation_shows():
    text = Plan(Dataset((subset([SQUARE] * 2, 5), subset([SQUARE] * 3, 1, "r", role="regularisation"))), 0).describe()
    assert "subset 2, 512 x 512: 3 pictures for regularisation, 10 sightings, 10 steps" in text and "20 steps an epoch" in text


@pytest.mark.parametrize(
    ("share", "pictures", "expected"),
    [(0.1, 5, 1), (0.01, 2, 1), (0.1, 1, 0), (0.99, 5, 4), (0.99, 1, 0), (0.0, 5, 0), (0.2, 20, 4), (0.5, 2, 1), (0.1, 0, 0)],
)
def test_a_share_holds_out_at_least_one_and_never_all(share, pictures, expected):
    one = subset([SQUARE] * pictures, validation_share=share)
    assert len(held_out(Dataset((one,)))) == expected
    said = remarks(one)
    assert bool(said) == (share > 0 and pictures > 0 and (expected == 0 or expected != round(share * pictures)))
    if said and expected:
        assert said[0].startswith(f"validation share: {share:g} of {pictures} pictures would be") and said[0].endswith(
            "held out."
        )


@given(st.floats(0.01, 0.99), st.integers(2, 200))
def test_a_share_is_as_near_as_whole_pictures_allow(share, pictures):
    held = how_many(share, pictures)
    assert 1 <= held < pictures and abs(held - share * pictures) <= 1


def test_pictures_with_the_same_content_are_one_for_a_share():
    same = subset([SQUARE] * 3, validation_share=0.3)
    same = dataclasses.replace(same, samples=tuple(dataclasses.replace(s, key="1" * 64) for s in same.samples))
    assert not held_out(Dataset((same,))) and "only one picture that differs" in remarks(same)[0]
