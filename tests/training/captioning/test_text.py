"""Text work on captions."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.captioning.text import (
    TextWork,
    appended,
    by_frequency,
    deduplicated,
    parse_rules,
    parse_tags,
    replaced,
    same,
    spaced,
    with_suffix,
    without,
)
from lora_atelier.training.dataset.words import parts
from lora_atelier.training.errors import AtelierError

TAGS = st.lists(
    st.sampled_from(["cat", "Cat", "long_hair", "long hair", "blue eyes", "^_^", "o_o", "a cat on a mat"]), max_size=8
)
CAPTIONS = TAGS.map(", ".join)
ANYTHING = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=40)


def kinds(text):
    return {same(part) for part in parts(text)}


def test_r3_fixed_features_are_removed_and_a_trigger_is_added():
    """Recipe R3: what always belongs to the subject leaves the tags, so that the trigger word learns it."""
    work = TextWork("ohwx", remove=parse_tags("blue eyes, *_hair\n1girl"), spaces=True)
    tags = "1girl, solo, long_hair, blonde_hair, blue_eyes, looking_at_viewer, hair_ornament"
    assert work.framed(work.body(tags)) == "ohwx, solo, looking at viewer, hair ornament"


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        ("cat, dog", "CAT", "dog"),
        ("a cat, a dog", "cat", "a cat, a dog"),
        ("long_hair, cat", "long hair", "cat"),
        ("^_^, ^ ^", "^_^", "^ ^"),
        ("red hat, hat, hats", "* hat", "hat, hats"),
        ("(o)_(o), [x], a.b", "[x], a?b", "(o)_(o), a.b"),
        ("untouched ,as it is", "dog", "untouched ,as it is"),
        ("cat", "*", ""),
        ("a_(x), b_(y), ^_^", "*_(x), ^_*", "b_(y)"),
        ("long  hair, hair long", "* hair", "hair long"),
    ],
)
def test_removing_tags(text, tags, expected):
    assert without(text, parse_tags(tags)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("long_hair, ^_^", "long hair, ^_^"),
        ("o_o", "o_o"),
        ("a_b_cd", "a b cd"),
        ("none", "none"),
        (">_<,  x_y_zz", ">_<,  x y zz"),
    ],
)
def test_underscores_become_spaces_but_faces_stay(text, expected):
    assert spaced(text) == expected


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("a cat in a category", "cat -> dog", "a dog in a category"),
        ("a cat, a mat", "a cat -> ohwx\nohwx -> ohwx cat", "ohwx cat, a mat"),
        ("a big  cat, big, x", "big ->", "a cat, x"),
        ("c++ and c", r"c++ -> \1", r"\1 and c"),
        ("A cat", "a -> the", "A cat"),
        ("一只猫坐在红色的沙发上", "猫 -> 狗\n红色 -> 蓝色", "一只狗坐在蓝色的沙发上"),
        ("红色头发，微笑，户外", "微笑 ->", "红色头发，户外"),
        ("赤い髪、笑顔、屋外", "笑顔 -> 微笑み", "赤い髪、微笑み、屋外"),
        ("コーヒーカップ", "カップ -> 皿", "コーヒー皿"),
        ("red猫 and redcat", "red -> blue", "blue猫 and redcat"),
        ("고양이가 소파에 있다, 고양이는 자고 있다", "고양이 -> 강아지", "강아지가 소파에 있다, 강아지는 자고 있다"),
        ("개구리와 무지개, 개", "개 -> 고양이", "개구리와 무지개, 고양이"),
        ("แมวนั่งบนโซฟา", "แมว -> หมา", "หมานั่งบนโซฟา"),
        ("a cafe\u0301 and a café", "café -> bar", "a bar and a bar"),
        ("a cafe\u0301", "cafe -> bar", "a cafe\u0301"),
        ("кошка и кошки", "кошка -> собака", "собака и кошки"),
        ("a.b axb", "a.b -> c", "c axb"),
    ],
)
def test_replacing(text, rules, expected):
    assert replaced(text, parse_rules(rules)) == expected


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("👩\u200d🎤 singer, 👩", "👩", "👩\u200d🎤 singer, X"),
        ("👍🏽 up, 👍", "👍", "👍🏽 up, X"),
        ("❤\ufe0f, ❤", "❤", "❤\ufe0f, X"),
        ("👩\u200d🎤, 🎤", "🎤", "👩\u200d🎤, X"),
        ("👍🏽!", "👍🏽", "X!"),
        ("cat👍, 👍cat", "👍", "catX, Xcat"),
    ],
)
def test_an_emoji_that_is_made_of_several_is_one(text, word, expected):
    assert replaced(text, [(word, "X")]) == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_frame_is_put_around_a_caption_once_however_accents_are_stored(form):
    work = TextWork("rené", "été, ", ", café")
    once = unicodedata.normalize(form, work.framed("chat"))
    assert work.bare(once) == "chat" and work.framed(work.body(work.bare(once))) == "rené, été, chat, café"


@pytest.mark.parametrize("line", ["cat", "-> dog", "cat => dog"])
def test_a_rule_that_is_none_is_named_with_its_line(line):
    with pytest.raises(AtelierError, match=r"replace: line 3 \('.*'\) is not of the form 'old -> new'"):
        parse_rules(f"a -> b\n\n{line}")


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        ("红色头发，微笑，户外", ["微笑"], "红色头发，户外"),
        ("赤い髪、笑顔、屋外", ["*髪"], "笑顔、屋外"),
        ("１ｇｉｒｌ, solo", ["1girl"], "solo"),
        ("cafe\u0301, bar", ["café"], "bar"),
        ("STRASSE, Haus", ["straße"], "Haus"),
        ("cat (animal), dog", ["cat （animal）"], "dog"),
        ("long_hair, x", ["*_hair"], "x"),
        ("a，b, c", ["b"], "a, c"),
        ("a [b], a b", ["a [*]"], "a b"),
    ],
)
def test_removing_tags_of_other_scripts_widths_and_forms(text, tags, expected):
    assert without(text, tags) == expected


def test_commas_of_a_text_stay_its_own():
    assert appended("红色头发，微笑", "户外, 微笑") == "红色头发，微笑，户外"
    assert deduplicated("猫、犬、猫") == "猫、犬"
    assert by_frequency(["甲，乙", "乙"]) == ["乙，甲", "乙"]
    assert spaced("long_hair，blue_eyes、^_^") == "long hair，blue eyes、^_^"


@pytest.mark.parametrize("pattern", ["*a" * 200 + "!", "*" * 300 + "!"])
def test_no_tag_makes_a_removal_go_on_for_ever(pattern):
    text = "a" * 50_000
    assert without(f"{text}, b", [pattern]) == f"{text}, b"


def test_order_by_frequency():
    texts = ["rare, cat, dog", "dog, cat", "cat, other, dog", "cat"]
    assert by_frequency(texts) == ["cat, dog, rare", "cat, dog", "cat, dog, other", "cat"]
    assert by_frequency(["x", "a, b, x", "b, x, a"]) == ["x", "x, a, b", "x, b, a"], "ties stay in their order"


@given(st.lists(CAPTIONS, max_size=6))
def test_ordering_loses_nothing_and_counts_fall(texts):
    ordered = by_frequency(texts)
    assert [Counter(parts(text)) for text in ordered] == [Counter(parts(text)) for text in texts]
    counts = Counter(tag for text in texts for tag in kinds(text))
    for text in ordered:
        falling = [counts[same(part)] for part in parts(text)]
        assert falling == sorted(falling, reverse=True)
    assert by_frequency(ordered) == ordered


@given(ANYTHING)
def test_without_anything_to_do_a_text_stays_as_it_is(text):
    assert TextWork().body(text) == text.strip() and without(text, ()) == text and replaced(text, ()) == text


@given(CAPTIONS)
def test_duplicates_go_and_nothing_else(text):
    once = deduplicated(text)
    assert kinds(once) == kinds(text) and len(parts(once)) == len(kinds(text)) and deduplicated(once) == once


@given(CAPTIONS, TAGS)
def test_removed_tags_are_gone_and_the_others_stay(text, tags):
    assert kinds(without(text, tags)) == kinds(text) - {same(tag) for tag in tags}


@given(CAPTIONS, CAPTIONS)
def test_appending_twice_is_appending_once(text, more):
    once = appended(text, more)
    assert appended(once, more) == once and once.startswith(text) and kinds(once) == kinds(text) | kinds(more)


TRIGGERS = st.sampled_from(["", "ohwx", "c++ (art)"])
PREFIXES = st.sampled_from(["", "a photo of ", "x"])
SUFFIXES = st.sampled_from(["", ", masterpiece", " in oil "])


@given(TRIGGERS, PREFIXES, SUFFIXES, CAPTIONS, st.booleans(), st.booleans())
def test_working_again_on_a_finished_caption_changes_nothing(trigger, prefix, suffix, text, deduplicate, spaces):
    work = TextWork(trigger, prefix, suffix, remove=("cat",), deduplicate=deduplicate, spaces=spaces)
    once = work.framed(work.body(work.bare(text)))
    assert work.framed(work.body(work.bare(once))) == once


def test_the_frame():
    work = TextWork("ohwx", "a photo of ", ", masterpiece")
    assert work.framed("a cat") == "ohwx, a photo of a cat, masterpiece"
    assert work.bare("ohwx, a photo of a cat, masterpiece") == "a cat" == work.bare("a cat")
    assert with_suffix(", x", "a, x") == "a, x"


def test_an_unknown_order_is_named():
    with pytest.raises(AtelierError, match="order: 'random'"):
        TextWork(order="random")
