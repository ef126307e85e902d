"""The order of batches: published sums, nothing lost, the same again for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset
from lora_atelier.training.errors import AtelierError


def subset(sizes, repeats=1, **settings):
    samples = tuple(Sample(Path(f"{i}.png"), w, h, None, f"{i:064x}") for i, (w, h) in enumerate(sizes))
    return Subset(SubsetConfig("input/test", **settings), samples, repeats)


INK_AND_LORE = [(600, 1000)] * 2 + [(1400, 1800)] * 6 + [(1024, 1024)] * 2 + [(1000, 600)] * 4


@pytest.fixture
def four_subsets():
    """14 pictures at four resolutions, the sum of a published style recipe."""
    return Dataset(
        (
            subset(INK_AND_LORE, 2, resolution=256, batch_size=8, buckets=False, crop="random"),
            subset(INK_AND_LORE, 2, resolution=512, batch_size=4),
            subset(INK_AND_LORE, 2, resolution=768, batch_size=4),
            subset(INK_AND_LORE, 2, resolution=1024, batch_size=2),
        )
    )


def test_the_published_sum_of_four_subsets(four_subsets):
    plan = Plan(four_subsets, seed=1)
    steps = Counter(row.subset for row in plan.bucket_table() for _ in range(row.batches))
    assert [steps[i] for i in range(4)] == [4, 7, 7, 14]
    assert plan.steps_per_epoch == 32
    assert plan.epochs_for(2000) == 63
    assert plan.locate(1727) == (53, 31)
    assert plan.epoch_of(1728) == 54


def test_the_bucket_table_of_the_512_subset(four_subsets):
    rows = [(r.size, r.images, r.sightings, r.batches) for r in Plan(four_subsets, 0).bucket_table() if r.subset == 1]
    assert rows == [((384, 640), 2, 4, 1), ((448, 576), 6, 12, 3), ((512, 512), 2, 4, 1), ((640, 384), 4, 8, 2)]


def test_twenty_pictures_times_ten_repeats_are_2000_steps_in_ten_epochs():
    plan = Plan(Dataset((subset([(512, 512)] * 20, 10, resolution=512),)), 0)
    assert plan.steps_per_epoch * 10 == 2000


@st.composite
def datasets(draw):
    sides = st.integers(64, 3000)
    return Dataset(
        tuple(
            subset(
                draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=12)),
                draw(st.integers(1, 4)),
                resolution=draw(st.sampled_from([128, 256, 512])),
                batch_size=draw(st.integers(1, 5)),
                buckets=draw(st.booleans()),
            )
            for _ in range(draw(st.integers(1, 3)))
        )
    )


@given(datasets(), st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_every_picture_is_shown_exactly_its_repeats(dataset, seed, epoch):
    plan = Plan(dataset, seed)
    shown = Counter((b.subset, index) for b in plan.epoch_batches(epoch) for index in b.samples)
    assert shown == {(n, i): s.repeats for n, s in enumerate(dataset.subsets) for i in range(len(s.samples))}
    assert len(plan.epoch_batches(epoch)) == plan.steps_per_epoch


@given(datasets(), st.integers(0, 1000), st.integers(0, 500))
def test_a_step_gives_the_same_batch_to_a_fresh_plan(dataset, seed, step):
    first = Plan(dataset, seed)
    walked = [first.batch(s) for s in range(max(0, step - 3), step + 1)][-1]
    assert Plan(dataset, seed).batch(step) == walked


@given(datasets(), st.integers(0, 100))
def test_a_batch_has_one_size_and_is_no_longer_than_asked(dataset, seed):
    plan = Plan(dataset, seed)
    sizes = {(number, index): size for number, size, members in plan.buckets for index in members}
    for batch in plan.epoch_batches(0):
        assert 1 <= len(batch.samples) <= dataset.subsets[batch.subset].config.batch_size
        assert {sizes[batch.subset, index] for index in batch.samples} == {batch.size}


def test_epochs_and_seeds_differ_and_subsets_are_mixed(four_subsets):
    plan = Plan(four_subsets, 7)
    assert plan.epoch_batches(0) != plan.epoch_batches(1) != Plan(four_subsets, 9).epoch_batches(1)
    order = [batch.subset for batch in plan.epoch_batches(0)]
    assert order != sorted(order)


def test_the_order_of_a_seed_is_for_ever():
    """A run that is continued with a later version must see the same order."""
    plan = Plan(Dataset((subset([(512, 512)] * 6, resolution=512, batch_size=4),)), 42)
    assert [batch.samples for batch in plan.epoch_batches(3)] == [(2, 3, 4, 1), (0, 5)]


def test_repeats_are_spread(four_subsets):
    """With a batch of one, every picture is seen once before any is seen again."""
    plan = Plan(Dataset((subset([(512, 512)] * 9, 3, resolution=512, batch_size=9),)), 0)
    assert all(len(set(batch.samples)) == 9 for batch in plan.epoch_batches(0))


def test_a_dataset_without_pictures_and_a_step_before_the_start_are_refused(four_subsets):
    with pytest.raises(AtelierError, match="dataset: there is no picture"):
        Plan(Dataset(()), 0)
    with pytest.raises(ValueError, match="step -1"):
        Plan(four_subsets, 0).batch(-1)


def test_the_description_names_short_batches():
    text = Plan(Dataset((subset([(512, 512)] * 5, resolution=512, batch_size=4),)), 0).describe()
    assert text == "512 x 512: 5 pictures, 2 steps, the last with 1\n2 steps an epoch"
