"""Captions and mirrors of single sightings: the documented order of work, by lot and yet always the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.augment import (
    CAPTION_VARIANTS,
    FIXED,
    caption_variants,
    mirrored,
    plain_caption,
    sighted_caption,
)

KEY = "ab" * 32
TAGS = "ohwx, red hair, smile, hat, garden"


def config(**values):
    return SubsetConfig("input/x", **values)


def sights(caption, number=200, **values):
    return [sighted_caption(caption, config(**values), 3, KEY, i) for i in range(number)]


def test_without_chance_a_caption_is_itself_with_prefix_and_suffix():
    assert set(sights("a cat,  asleep")) == {"a cat,  asleep"}
    assert set(sights("a cat", caption_prefix="ohwx, ", caption_suffix=", photo")) == {"ohwx, a cat, photo"}
    assert plain_caption(None, config()) == ""
    assert plain_caption(None, config(caption_prefix="ohwx ")) == "ohwx"


def test_shuffling_keeps_the_first_parts_and_loses_none():
    seen = sights(TAGS, shuffle_captions=True, keep_tokens=1)
    assert all(text.startswith("ohwx, ") for text in seen)
    assert {tuple(sorted(text.split(", "))) for text in seen} == {tuple(sorted(TAGS.split(", ")))}
    assert 8 < len(set(seen)) <= CAPTION_VARIANTS


def test_the_prefix_is_one_of_the_kept_parts():
    seen = sights("red hair, smile", caption_prefix="ohwx, ", shuffle_captions=True, keep_tokens=1)
    assert set(seen) == {"ohwx, red hair, smile", "ohwx, smile, red hair"}


def test_each_part_is_dropped_as_often_as_asked_and_kept_parts_never():
    many = [
        part
        for n in range(400)
        for part in sighted_caption(TAGS, config(tag_dropout=0.3, keep_tokens=1), 0, f"{n:064x}", 0).split(", ")
    ]
    counts = Counter(many)
    assert counts["ohwx"] == 400
    # 4 x 400 lots at 0.7: 1120, with a standard deviation of 18.
    assert 1050 < sum(counts[tag] for tag in TAGS.split(", ")[1:]) < 1190
    for text in sights(TAGS, tag_dropout=0.3, number=8):
        assert text.split(", ") == sorted(text.split(", "), key=TAGS.split(", ").index), "without shuffling the order stays"


def test_whole_captions_are_dropped_as_often_as_asked():
    # 2000 lots at 0.1: 200, with a standard deviation of 13.
    assert 150 < sights(TAGS, number=2000, caption_dropout=0.1).count("") < 250


@settings(max_examples=40)
@given(
    st.text(max_size=60),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.2, 0.7]),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 2**64 - 1),
    st.integers(1, 40),
)
def test_what_is_encoded_ahead_is_all_that_is_ever_seen(caption, shuffle, keep, tags, whole, seed, number):
    values = config(shuffle_captions=shuffle, keep_tokens=keep, tag_dropout=tags, caption_dropout=whole)
    ahead = caption_variants(caption, values, seed, KEY, number)
    seen = [sighted_caption(caption, values, seed, KEY, i) for i in range(number)]
    assert set(seen) <= set(ahead) and len(ahead) == len(set(ahead)) <= CAPTION_VARIANTS + 1
    assert seen == [sighted_caption(caption, values, seed, KEY, i) for i in range(number)]


def test_the_lots_of_a_seed_are_for_ever():
    """A run that is continued with a later version must see the same captions."""
    values = config(shuffle_captions=True, keep_tokens=1, tag_dropout=0.3)
    seen = [sighted_caption(TAGS, values, 42, KEY, i) for i in range(2)]
    assert seen == ["ohwx, garden, smile, hat, red hair", "ohwx, hat, garden"]
    assert [mirrored(config(flip=True), 42, KEY, i) for i in range(8)] == [True, True, False, True, False, False, True, False]


LINES = "a cat, red\na feline, blue\nan animal, on a mat"


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3, 5, 17, 40])
def test_alternatives_take_turns_evenly(shuffle, number):
    caption = "\n".join(f"{i}, x" for i in range(number))
    config = SubsetConfig("input/a", caption_lines="alternatives", shuffle_captions=shuffle, keep_tokens=1, caption_suffix="!")
    rounds = 4 * number
    seen = [sighted_caption(caption, config, 7, "key", n) for n in range(rounds)]
    lines = [text.split(",")[0] for text in seen]
    assert Counter(lines) == {str(i): 4 for i in range(number)}
    assert all(sorted(lines[k : k + number]) == sorted(map(str, range(number))) for k in range(0, rounds, number))
    assert set(seen) <= set(caption_variants(caption, config, 7, "key", rounds))
    assert number < 5 or lines[:number] != [sighted_caption(caption, config, 8, "key", n).split(",")[0] for n in range(number)]


def test_what_is_only_looked_at_sees_the_first_alternative():
    config = SubsetConfig("input/a", caption_lines="alternatives", caption_prefix="ohwx, ")
    assert plain_caption(LINES, config) == "ohwx, a cat, red" == sighted_caption(LINES, config, 3, "key", FIXED)


def test_half_of_the_sightings_are_mirrored_and_none_where_flip_is_off():
    assert 440 < sum(mirrored(config(flip=True), 0, KEY, i) for i in range(1000)) < 560
    assert not any(mirrored(config(), 0, KEY, i) for i in range(50))


@pytest.mark.parametrize("empty", ["", " , ,", None])
def test_nothing_stays_nothing(empty):
    assert sighted_caption(empty, config(shuffle_captions=True), 0, KEY, 0) == ""
