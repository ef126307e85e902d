"""Captions edited by hand: nothing that somebody else wrote meanwhile is lost, and every edit can be taken back."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training import files
from lora_atelier.training.captioning import editing
from lora_atelier.training.captioning.editing import Changed, Edit, Unclear
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import caption_reader
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
    before = (folder / "a.txt").read_bytes()
    with pytest.raises(AtelierError, match=r"a\.jpg and a\.png share one caption file, and these texts differ"):
        write(folder, both)
    with pytest.raises(AtelierError, match=r"there are two edits of a\.jpg"):
        write(folder, [both[0], both[0], dataclasses.replace(both[0])])
    assert (folder / "a.txt").read_bytes() == before
    undo, now = write(folder, [dataclasses.replace(one, caption="a bulk change") for one in both])
    assert [one.caption for one in now] == ["a bulk change"] * 2 and now[0].version == now[1].version
    write(folder, undo)
    assert (folder / "a.txt").read_bytes() == before


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
    """The last one's name is so long that it can have no caption file with this ending."""
    long = "z" * 251
    noise_picture((16, 16), 20).save(folder / f"{long}.png")
    config = SubsetConfig("input/set", caption_extension=".captions")
    known = listed(folder, config)
    with pytest.raises(AtelierError, match=r"cannot be written.*Shorten the picture's name"):
        write(folder, [Edit(one.picture, "new", one.version) for one in known], config)
    assert listed(folder, config) == known and not list(folder.rglob("*.captions"))


def test_a_failure_half_way_puts_back_what_was_written_to_the_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    before = {path: path.read_bytes() for path in folder.rglob("*.txt")}
    wanted = edits(folder, a="blue", c="blau", b="new")
    real, calls = os.replace, []

    def fails_at_the_third(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise PermissionError(13, "Permission denied", str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_at_the_third)
    with pytest.raises(AtelierError, match=r"b\.txt: the caption cannot be written \(Permission denied\)"):
        write(folder, wanted)
    assert {path: path.read_bytes() for path in folder.rglob("*.txt")} == before
    assert not list(folder.rglob("*.partial"))


def test_what_cannot_be_put_back_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = edits(folder, a="blue", b="new")
    real, calls = os.replace, []

    def fails_after_the_first(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > 1:
            raise OSError(5, "Input/output error", str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_after_the_first)
    with pytest.raises(AtelierError, match=r"writing broke off .*a\.txt had been written by then, the others not"):
        write(folder, wanted)


def test_a_full_disk_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.txt")}
    wanted = edits(folder, a="blue", b="new")

    def full(_paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "settle", full)
    with pytest.raises(AtelierError):
        write(folder, wanted)
    assert {path: path.read_bytes() for path in folder.rglob("*.txt")} == before and not list(folder.rglob("*.partial"))


def test_saving_reads_and_writes_every_file_once_and_waits_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50):
        noise_picture((16, 16), 20).save(folder / f"n{i}.png")
        (folder / f"n{i}.txt").write_text("before")
    wanted = edits(folder, **{f"n{i}": "after" for i in range(50)})
    counts: Counter[str] = Counter()

    def counting(owner: object, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **more: (counts.update([name]), real(*given, **more))[1])

    for owner, name in ((caption_reader, "read_limited"), (os, "replace"), (os, "fsync"), (os, "sync"), (os, "scandir")):
        counting(owner, name)
    write(folder, wanted)
    assert {path.read_text() for path in folder.glob("n*.txt")} == {"after\n"}
    assert counts["read_limited"] == 50 and counts["replace"] == 50, "once a file"
    assert counts["sync"] == 1 and counts["fsync"] == 0 and counts["scandir"] <= 3, "however many files there are"


@pytest.mark.parametrize(
    "data",
    [
        b"two\r\nlines\r\n", b"no line end", b"\xef\xbb\xbfmarked\n", "süß".encode("cp1252"), "猫".encode("utf-16"), b"",
        b"  spaces \n", "a\u200bb\tc\n".encode(),
    ],
)  # fmt: skip
def test_an_undo_restores_a_file_to_the_byte(folder: Path, data: bytes) -> None:
    (folder / "b.txt").write_bytes(data)
    undo, _ = write(folder, edits(folder, b="changed"))
    assert (folder / "b.txt").read_bytes() != data
    undo, _ = write(folder, undo)
    assert (folder / "b.txt").read_bytes() == data
    write(folder, undo)
    assert "changed" in next(one for one in listed(folder) if one.picture == "b.png").caption  # type: ignore[operator]


@pytest.mark.parametrize("original", ["no base64!", "AAA", "A" * (1 << 21)])
def test_what_is_to_be_restored_is_checked(folder: Path, original: str) -> None:
    with pytest.raises(AtelierError, match="captions: "):
        write(folder, [Edit("b.png", None, "", original)])
    assert not (folder / "b.txt").exists()


RUSSIAN = "рыжая кошка сидит на красном диване"


def test_a_guess_is_asked_about_before_it_is_written(folder: Path) -> None:
    (folder / "b.txt").write_bytes(RUSSIAN.encode("koi8_r"))
    (folder / "10_cat" / "c.txt").unlink()
    known = {one.picture: one for one in listed(folder, ANY)}
    edit = Edit("b.png", f"ohwx, {RUSSIAN}", known["b.png"].version)
    with pytest.raises(Unclear, match=r"b\.png: the encoding of these files is only a guess.*Nothing was saved"):
        write(folder, [edit], ANY)
    assert (folder / "b.txt").read_bytes() == RUSSIAN.encode("koi8_r")
    undo, _ = editing.write(folder, [edit], ANY, as_utf8=True)
    assert (folder / "b.txt").read_text(encoding="utf-8") == f"ohwx, {RUSSIAN}\n"
    write(folder, undo, ANY)
    assert (folder / "b.txt").read_bytes() == RUSSIAN.encode("koi8_r")


def test_a_certain_encoding_is_kept_and_a_letter_that_is_not_in_it_is_asked_about(folder: Path) -> None:
    write(folder, edits(folder, c="grün, cat"))
    assert (folder / "10_cat" / "c.txt").read_bytes() == "grün, cat\n".encode("cp1252")
    with pytest.raises(Unclear, match=r"10_cat/c\.png"):
        write(folder, edits(folder, c="猫"))
    editing.write(folder, edits(folder, c="猫"), WESTERN, as_utf8=True)
    assert (folder / "10_cat" / "c.txt").read_text(encoding="utf-8") == "猫\n"


def test_lines_stay_lines(folder: Path) -> None:
    (folder / "b.txt").write_text("a cat\na red cat\n")
    assert next(one for one in listed(folder) if one.picture == "b.png").caption == "a cat\na red cat"
    captions = {"b": "a cat\na red cat"}
    assert editing.with_more(captions, "drawn") == {"b": "a cat, drawn\na red cat, drawn"}
    assert editing.with_other(captions, "cat", "dog") == {"b": "a dog\na red dog"}
    assert editing.with_tag(captions, "a red *") == captions and editing.with_tag(captions, "red") == {}
    write(folder, edits(folder, b="a dog\r\na red dog"))
    assert (folder / "b.txt").read_bytes() == b"a dog\na red dog\n"


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
