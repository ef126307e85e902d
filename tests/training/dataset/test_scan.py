"""Reading folders: layouts, captions, and what a new user gets wrong."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.captions import write_caption
from lora_atelier.training.dataset.change_stamps import remember, stamp
from lora_atelier.training.dataset.names import natural_key
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, refresh_captions, scan
from lora_atelier.training.dataset.walk import find
from lora_atelier.training.errors import AtelierError
from PIL import Image

CONFIG = SubsetConfig("input/set")


def picture(path, size=(8, 6), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "set"


def test_a_flat_folder(folder):
    for name in ("10.png", "2.png", "1.jpg", "B.webp", "a.bmp"):
        picture(folder / name)
    (folder / "2.txt").write_text("two")
    (folder / "notes.md").write_text("not a picture")
    picture(folder / ".hidden.png")
    (subset,) = scan(folder, CONFIG)
    assert [s.path.name for s in subset.samples] == ["1.jpg", "2.png", "10.png", "a.bmp", "B.webp"]
    assert [s.caption for s in subset.samples] == [None, "two", None, None, None]
    assert {(s.width, s.height) for s in subset.samples} == {(8, 6)}
    assert (subset.repeats, subset.config, subset.warnings) == (1, CONFIG, ())


def test_the_key_is_the_files_content(folder):
    import hashlib

    one, two = picture(folder / "1.png"), picture(folder / "2.png", colour="blue")
    (folder / "3.png").write_bytes(one.read_bytes())
    keys = [sample.key for sample in scan(folder, CONFIG)[0].samples]
    assert keys[0] == hashlib.sha256(one.read_bytes()).hexdigest() == keys[2]
    assert keys[1] == hashlib.sha256(two.read_bytes()).hexdigest()


def test_a_changed_picture_gets_a_new_key_and_an_unchanged_one_is_not_read_again(folder):
    path = picture(folder / "1.bmp")
    before = scan(folder, CONFIG)[0].samples[0]
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert scan(folder, CONFIG)[0].samples[0] == before, "same size and time: taken as unchanged"
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert scan(folder, CONFIG)[0].samples[0].key != before.key


def test_the_kohya_layout_of_a_parent_folder(folder):
    picture(folder / "25_MiraVelden" / "1.png")
    (folder / "25_MiraVelden" / "1.txt").write_text("a portrait")
    picture(folder / "25_MiraVelden" / "2.png")
    picture(folder / "3_ohwx man_at work" / "x.png")
    ohwx, mira = scan(folder, CONFIG)
    assert (ohwx.repeats, ohwx.config.folder) == (3, "input/set/3_ohwx man_at work")
    assert (mira.repeats, mira.config.folder) == (25, "input/set/25_MiraVelden")
    assert [s.caption for s in ohwx.samples] == ["ohwx man_at work"]
    assert [s.caption for s in mira.samples] == ["a portrait", "MiraVelden"]
    assert [s.caption for s in scan(folder / "25_MiraVelden", CONFIG)[0].samples] == ["a portrait", "MiraVelden"]


def test_loose_pictures_of_a_parent_are_a_subset_of_their_own(folder):
    picture(folder / "1.png")
    picture(folder / "4_cat" / "1.png")
    assert [subset.repeats for subset in scan(folder, CONFIG)] == [1, 4]


def test_repeats_of_the_node_win(folder):
    picture(folder / "25_x" / "1.png")
    picture(folder / "2024_holiday" / "1.png")
    assert [s.repeats for s in scan(folder, SubsetConfig("input/set", repeats=3))] == [3, 3]
    year = scan(folder, CONFIG)[1]
    assert year.repeats == 2024 and "2024_holiday means 2024 repeats" in year.warnings[0]


@pytest.mark.parametrize("name", ["0_x", "99999999999_x"])
def test_impossible_repeats_in_a_name_are_named(folder, name):
    picture(folder / name / "1.png")
    with pytest.raises(AtelierError, match=f"folder: {name} asks for"):
        scan(folder, CONFIG)


def test_another_caption_extension(folder):
    picture(folder / "1.png")
    (folder / "1.caption").write_text("one")
    (subset,) = scan(folder, SubsetConfig("input/set", caption_extension=".caption"))
    assert subset.samples[0].caption == "one"


def test_an_empty_caption_file_is_a_caption_and_wins_over_the_class(folder):
    picture(folder / "5_cat" / "1.png")
    (folder / "5_cat" / "1.txt").write_text("")
    assert scan(folder, CONFIG)[0].samples[0].caption == ""


def test_what_is_odd_about_caption_files_is_said_once_for_all_of_them(folder):
    for i, text in enumerate(["рыжая кошка сидит на диване", "ночная улица города, дождь", "одна\nдве", "ёлка"]):
        picture(folder / f"{i}.png")
        (folder / f"{i}.txt").write_bytes(text.encode("cp1251"))
    (subset,) = scan(folder, CONFIG)
    assert [s.caption for s in subset.samples] == [
        "рыжая кошка сидит на диване",
        "ночная улица города, дождь",
        "одна две",
        "ёлка",
    ]
    guess, lines = subset.warnings[:2]
    assert guess.startswith("captions were read as WINDOWS-1251, a guess by their letters: 0.txt, 1.txt, 2.txt and 1 more.")
    assert lines.startswith("captions of several lines, read as one text: 2.txt.")


def test_pictures_in_other_formats_and_unnumbered_folders_are_reported(folder):
    picture(folder / "1.png")
    (folder / "2.mp4").write_bytes(b"a film")
    picture(folder / "more" / "3.png")
    (subset,) = scan(folder, CONFIG)
    assert len(subset.samples) == 1
    assert any("films are not trained on (1): 2.mp4." in warning for warning in subset.warnings)
    assert any("not used (1): more." in warning for warning in subset.warnings)


def test_a_missing_folder_is_named(folder):
    with pytest.raises(AtelierError, match=r"folder: .*set does not exist"):
        scan(folder, CONFIG)


def test_a_file_in_place_of_a_folder_is_named(folder):
    folder.write_text("x")
    with pytest.raises(AtelierError, match=r"folder: .*set is a file"):
        scan(folder, CONFIG)


def test_an_empty_folder_says_what_is_expected(folder):
    folder.mkdir()
    with pytest.raises(AtelierError, match=r"folder: .*set has no pictures\. Put pictures \(.*png.*\) there, or .*'10_name'"):
        scan(folder, CONFIG)
    picture(folder / "portraits" / "1.png")
    with pytest.raises(AtelierError, match=r"Sub-folders without a number .*: portraits\."):
        scan(folder, CONFIG)
    (folder / "x.mp4").write_bytes(b"a film")
    with pytest.raises(AtelierError, match=r"Films are not trained on \(1\): x\.mp4\."):
        scan(folder, CONFIG)


def test_a_broken_picture_is_named(folder):
    picture(folder / "1.png")
    (folder / "bad.jpg").write_bytes(b"<html>")
    with pytest.raises(AtelierError, match=r"bad\.jpg: this picture cannot be read"):
        scan(folder, CONFIG)


@pytest.mark.parametrize("kind", ["picture", "caption", "folder", "nowhere"])
def test_links_out_of_the_folder_are_refused(tmp_path, folder, kind):
    secret = tmp_path / "secret"
    picture(secret / "1.png")
    (secret / "1.txt").write_text("a secret")
    folder.mkdir()
    if kind == "picture":
        (folder / "x.png").symlink_to(secret / "1.png")
    elif kind == "caption":
        picture(folder / "x.png")
        (folder / "x.txt").symlink_to(secret / "1.txt")
    elif kind == "folder":
        (folder / "5_x").symlink_to(secret)
    else:
        (folder / "x.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(AtelierError, match=r"x.*: this is a link that leads out of"):
        scan(folder, CONFIG)


def test_links_inside_the_root_are_followed(tmp_path, folder):
    picture(tmp_path / "other" / "1.png")
    folder.mkdir()
    (folder / "x.png").symlink_to(tmp_path / "other" / "1.png")
    assert len(scan(folder, CONFIG, root=tmp_path)[0].samples) == 1


def test_a_link_to_nothing_inside_the_folder_is_named(folder):
    folder.mkdir()
    (folder / "x.png").symlink_to(folder / "gone.png")
    with pytest.raises(AtelierError, match=r"x\.png: this picture cannot be read"):
        scan(folder, CONFIG)


@given(st.lists(st.text("ab01 _-²٣", min_size=1, max_size=6), max_size=8, unique=True))
def test_the_order_is_total_and_does_not_depend_on_the_disk(names):
    ordered = sorted(names, key=natural_key)
    assert ordered == sorted(reversed(names), key=natural_key)


def test_the_order_is_the_natural_one():
    names = ["img10", "img9", "Img1", "img", "1", "b2a", "b10a"]
    assert sorted(names, key=natural_key) == ["1", "b2a", "b10a", "img", "Img1", "img9", "img10"]


def test_the_stamp_sees_every_change(folder):
    path = picture(folder / "1.png")
    picture(folder / "2_x" / "1.png")
    seen = [folder_stamp(folder)]

    def changed():
        seen.append(folder_stamp(folder))
        return len(set(seen)) == len(seen)

    assert folder_stamp(folder) == seen[0]
    (folder / "1.txt").write_text("a")
    assert changed()
    (folder / "1.txt").write_text("longer")
    assert changed()
    picture(path, (9, 9))
    assert changed()
    picture(folder / "2_x" / "2.png")
    assert changed()
    (folder / "2_x" / "2.png").unlink()
    (folder / "2_x" / "1.txt").write_text("x")
    assert changed()


def write_ours(path, text):
    before = stamp(path)
    write_caption(path, text)
    remember(path, before)


def test_captions_written_here_do_not_count_as_a_change_until_somebody_edits_them(folder):
    picture(folder / "1.png")
    text = folder / "1.txt"
    first = folder_stamp(folder)
    write_ours(text, "a cat")
    assert folder_stamp(folder) == first
    write_ours(text, "a larger cat")
    assert folder_stamp(folder) == first
    text.write_text("edited by hand")
    edited = folder_stamp(folder)
    assert edited != first
    write_ours(text, "and written again")
    assert folder_stamp(folder) == edited
    text.unlink()
    gone = folder_stamp(folder)
    assert gone not in (first, edited)
    write_ours(text, "back")
    assert folder_stamp(folder) == gone
    text.unlink()
    assert folder_stamp(folder) != gone


def test_captions_are_taken_from_the_disk_as_they_are_now(folder):
    picture(folder / "5_cat" / "1.png")
    picture(folder / "5_cat" / "2.png")
    dataset = Dataset(scan(folder, CONFIG))
    (folder / "5_cat" / "1.txt").write_text("one")
    assert [s.caption for s in refresh_captions(dataset).samples] == ["one", "cat"]


def test_nothing_is_opened_to_find_the_files(folder):
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"")
    assert [path.name for path in find(folder)[0].pictures] == ["bad.png"]
