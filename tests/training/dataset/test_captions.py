"""Text work and caption files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.dataset.captions import (
    caption_from_file_name,
    caption_path,
    with_prefix,
    with_trigger,
    write_caption,
)
from lora_atelier.training.errors import AtelierError


@pytest.mark.parametrize(
    ("trigger", "caption", "expected"),
    [
        ("ohwx", "a cat", "ohwx, a cat"),
        (" ohwx, ", " a cat ", "ohwx, a cat"),
        ("", "a cat", "a cat"),
        ("ohwx", "", "ohwx"),
        ("ohwx", "ohwx, a cat", "ohwx, a cat"),
        ("ohwx", "ohwx cat", "ohwx cat"),
        ("ohwx", "ohwxy cat", "ohwx, ohwxy cat"),
        ("c++ (art)", "c++ (art), a cat", "c++ (art), a cat"),
    ],
)
def test_trigger_words(trigger, caption, expected):
    assert with_trigger(trigger, caption) == expected


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=40)


@given(TEXT, TEXT)
def test_trigger_and_prefix_are_added_once(word, caption):
    once = with_trigger(word, caption)
    assert with_trigger(word, once) == once
    assert with_prefix(word, with_prefix(word, caption)) == with_prefix(word, caption)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cat-face.png", "cat face"),
        ("red_panda_01.jpg", "red panda"),
        ("cat face (1).png", "cat face"),
        ("cat-face_2 (13).png", "cat face"),
        ("photo-007.png", "photo"),
        ("boeing-747.png", "boeing 747"),
        ("0001.png", "0001"),
        ("1f431.png", "1f431"),
        ("__x__.png", "x"),
        ("mont blanc.v2.png", "mont blanc.v2"),
    ],
)
def test_file_names_as_words(name, words):
    assert caption_from_file_name(Path(name)) == words


def test_the_demo_sets_pattern():
    assert caption_from_file_name(Path("x/cat-face.png"), "openmoji emoji, {name}") == "openmoji emoji, cat face"


def test_the_folder_in_a_pattern():
    assert caption_from_file_name(Path("blue-vases/1.png"), "{folder}, {name}") == "blue vases, 1"
    assert caption_from_file_name(Path("5_x/1.png"), "{folder}", folder="ohwx vase") == "ohwx vase"


def test_a_name_with_braces_is_not_a_pattern():
    assert caption_from_file_name(Path("{folder}.png"), "{name}") == "{folder}"


def test_an_unknown_field_is_named():
    with pytest.raises(AtelierError, match=r"pattern: \{nam\} is not known here; use \{name\}"):
        caption_from_file_name(Path("x.png"), "emoji, {nam}")


def test_written_captions_are_utf8_and_leave_nothing_else_behind(tmp_path):
    path = caption_path(tmp_path / "猫.v1.png")
    write_caption(path, "zażółć, 猫")
    assert path.name == "猫.v1.txt" and path.read_bytes() == "zażółć, 猫\n".encode()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("trigger", "caption", "expected"),
    [
        ("小明", "小明在公园里跑", "小明在公园里跑"),
        ("ohwx", "ohwx一只猫", "ohwx一只猫"),
        ("ohwx", "一只猫，坐着", "ohwx, 一只猫，坐着"),
        ("ohwx，", "一只猫", "ohwx, 一只猫"),
        ("猫", "猫が座っている", "猫が座っている"),
        ("철수", "철수가 걷는다", "철수가 걷는다"),
        ("철수", "철수네집", "철수, 철수네집"),
        ("café", "cafe\u0301 noir", "cafe\u0301 noir"),
        ("cafe", "cafe\u0301 noir", "cafe, cafe\u0301 noir"),
        ("ohwx", "OHWX, a cat", "ohwx, a cat"),
        ("Straße", "straße bei Nacht", "Straße bei Nacht"),
        (r"a.*b(\d+)[x]", "aaab", r"a.*b(\d+)[x], aaab"),
        (r"a.*b(\d+)[x]", r"a.*b(\d+)[x], c", r"a.*b(\d+)[x], c"),
    ],
)
def test_trigger_words_of_other_scripts_forms_and_capitals(trigger, caption, expected):
    assert with_trigger(trigger, caption) == expected
    assert with_trigger(trigger, expected) == expected


def test_a_caption_that_cannot_be_written_is_named(tmp_path):
    """A folder that is in the way fails for every user, root too."""
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(AtelierError, match=r"a\.txt: the caption cannot be written"):
        write_caption(tmp_path / "a.txt", "x")
    assert os.listdir(tmp_path) == ["a.txt"]
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(AtelierError, match=r"b\.txt: the caption cannot be written"):
        write_caption(tmp_path / "file" / "b.txt", "x")
