"""Captions edited by hand: nothing that somebody else wrote meanwhile is lost, and every edit can be taken back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.captioning import editing
from lora_atelier.training.captioning.editing import Changed, Edit
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.errors import AtelierError

WORDS = st.text("abcäß ", min_size=1, max_size=6).filter(str.strip)


ANY = SubsetConfig("input/set")
WESTERN = SubsetConfig("input/set", caption_encoding="windows-1252")


def listed(folder: Path, config: SubsetConfig = WESTERN) -> list[editing.Listed]:
    return editing.listed(folder, config)


def write(folder: Path, wanted: list[Edit], config: SubsetConfig = WESTERN) -> tuple[list[Edit], list[editing.Listed]]:
    return editing.write(folder, wanted, config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "10_cat/c.png", "10_cat/d.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        noise_picture((16, 16), 20).save(path)
    (tmp_path / "a.txt").write_text("red, round\n", encoding="utf-8")
    (tmp_path / "10_cat" / "c.txt").write_bytes("süß, cat".encode("cp1252"))
    return tmp_path


def edits(folder: Path, **captions: str | None) -> list[Edit]:
    known = {Path(one.picture).stem: one for one in listed(folder)}
    return [Edit(known[name].picture, caption, known[name].version) for name, caption in captions.items()]


def test_every_picture_is_listed_with_what_its_file_says(folder: Path) -> None:
    found = listed(folder)
    assert [(one.picture, one.caption) for one in found] == [
        ("a.png", "red, round"), ("b.png", None), ("10_cat/c.png", "süß, cat"), ("10_cat/d.jpg", None),
    ]  # fmt: skip
    assert [one.version == editing.NO_FILE for one in found] == [False, True, False, True]


def test_an_edit_is_written_and_can_be_taken_back(folder: Path) -> None:
    before = listed(folder)
    undo, now = write(folder, edits(folder, a="blue, round", d="a cat"))
    assert (folder / "a.txt").read_bytes() == b"blue, round\n" and (folder / "10_cat" / "d.txt").read_text() == "a cat\n"
    assert {one.picture: one for one in now}.items() <= {one.picture: one for one in listed(folder)}.items()
    write(folder, undo)
    assert not (folder / "10_cat" / "d.txt").exists()
    assert listed(folder) == before


def test_a_file_that_changed_meanwhile_is_named_and_nothing_is_written(folder: Path) -> None:
    wanted = edits(folder, b="new", a="blue")
    (folder / "a.txt").write_text("somebody else's", encoding="utf-8")
    with pytest.raises(Changed, match=r"a\.png changed on the disk"):
        write(folder, wanted)
    assert (folder / "a.txt").read_text() == "somebody else's" and not (folder / "b.txt").exists()


def test_a_file_that_appeared_meanwhile_is_not_overwritten(folder: Path) -> None:
    wanted = edits(folder, b="new")
    (folder / "b.txt").write_text("", encoding="utf-8")
    with pytest.raises(Changed):
        write(folder, wanted)


@pytest.mark.parametrize("picture", ["../a.png", "/etc/passwd", "c.png", "10_cat/../a.png", "10_cat\\c.png", "", "a.txt"])
def test_only_pictures_of_the_folder_can_be_edited(folder: Path, picture: str) -> None:
    with pytest.raises(AtelierError, match="is not a picture of"):
        write(folder, [Edit(picture, "x", "")])


@pytest.mark.parametrize("caption", ["nul\0", "x" * (1 << 20) + "y", "\ud800"])
def test_what_no_caption_file_can_hold_is_refused(folder: Path, caption: str) -> None:
    with pytest.raises(AtelierError, match=r"b\.png"):
        write(folder, edits(folder, b=caption))
    assert not (folder / "b.txt").exists()


def test_two_pictures_that_share_a_caption_file_are_not_edited_at_once(folder: Path) -> None:
    noise_picture((16, 16), 20).save(folder / "a.jpg")
    both = [Edit(one.picture, one.picture, one.version) for one in listed(folder) if one.picture.startswith("a.")]
    assert len(both) == 2
    with pytest.raises(AtelierError, match="the same caption file"):
        write(folder, both)


def test_a_caption_file_that_is_a_link_elsewhere_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "secret.txt"
    other.write_text("secret", encoding="utf-8")
    (folder / "b.txt").symlink_to(other)
    with pytest.raises(AtelierError, match=r"b\.txt"):
        listed(folder)
    with pytest.raises(AtelierError, match=r"b\.txt"):
        write(folder, [Edit("b.png", "mine", "")])
    assert other.read_text() == "secret"


def test_if_one_cannot_be_written_none_is(folder: Path) -> None:
    """The last one's name is so long that no temporary file beside it can be made."""
    long = "z" * 245
    noise_picture((16, 16), 20).save(folder / f"{long}.png")
    before = listed(folder)
    with pytest.raises(AtelierError, match="cannot be written"):
        write(folder, edits(folder, a="blue", b="new", **{long: "too long"}))
    assert listed(folder) == before


def test_too_many_edits_are_refused(folder: Path) -> None:
    with pytest.raises(AtelierError, match="too many"):
        write(folder, [Edit("a.png", "x", "")] * (editing.MAX_EDITS + 1))


CAPTIONS = {"1": "ohwx, red_hair, smile", "2": "a category of cats", "3": ""}


def test_bulk_changes_on_known_captions() -> None:
    assert editing.with_tag(CAPTIONS, "red hair") == {"1": CAPTIONS["1"]}
    assert editing.with_tag(CAPTIONS, "* hair") == {"1": CAPTIONS["1"]}
    assert editing.with_more(CAPTIONS, "smile, hat") == {
        "1": "ohwx, red_hair, smile, hat", "2": "a category of cats, smile, hat", "3": "smile, hat",
    }  # fmt: skip
    assert editing.with_more(CAPTIONS, "smile, hat", first=True)["1"] == "smile, hat, ohwx, red_hair"
    assert editing.with_less(CAPTIONS, ["Red Hair", "smile"])["1"] == "ohwx"
    assert editing.with_other(CAPTIONS, "cats", "dogs")["2"] == "a category of dogs"
    with pytest.raises(AtelierError, match="replace"):
        editing.with_other(CAPTIONS, " ", "x")


@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(WORDS, min_size=1, max_size=3))
def test_what_was_added_is_there_once_and_removing_it_leaves_none(have: list[str], add: list[str]) -> None:
    captions = {"1": ", ".join(have)}
    more = editing.with_more(captions, ", ".join(add))
    assert editing.with_more(more, ", ".join(add)) == more
    assert all(editing.with_tag(more, tag) for tag in add)
    assert not any(editing.with_tag(editing.with_less(more, add), tag) for tag in add)


def test_an_undo_knows_if_somebody_wrote_since(folder: Path) -> None:
    undo, _ = write(folder, edits(folder, a="blue"))
    (folder / "a.txt").write_text("green", encoding="utf-8")
    with pytest.raises(Changed):
        write(folder, undo)
    now = next(one for one in listed(folder) if one.picture == "a.png")
    write(folder, [dataclasses.replace(undo[0], version=now.version)])
    assert (folder / "a.txt").read_text() == "red, round\n"
