"""Taking pictures out and putting them back: nothing is lost, and nothing of other pictures goes along."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.folders import list_folders
from lora_atelier.training.dataset.put_aside import FOLDER, remove, restore, take_back
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from PIL import Image

from .made_films import levels, write

DRAWN = (
    "a_mask.png",
    "a_control.png",
    "a.control.png",
    "control/b.png",
    "control/b_1.png",
    "control/b.jpg.png",
    "10_cat_control/c.png",
)
CONFIG = SubsetConfig("input/set", nested=True)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def filled(folder):
    for name in ("10_cat/masks", "control", "10_cat_control"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "10_cat/c.png", "a.mask.png", "10_cat/masks/c.png", *DRAWN)):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    for name in ("a.txt", "10_cat/c.TXT", "b.jpg.txt", "a.png.txt"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def folder(tmp_path):
    return filled(tmp_path)


@pytest.mark.parametrize(
    ("picture", "gone"),
    [
        ("a.png", {"a.png", "a.txt", "a.png.txt", "a.mask.png", "a_mask.png", "a_control.png", "a.control.png"}),
        ("b.jpg", {"b.jpg", "b.jpg.txt", "control/b.png", "control/b_1.png", "control/b.jpg.png"}),
        ("10_cat/c.png", {"10_cat/c.png", "10_cat/c.TXT", "10_cat/masks/c.png", "10_cat_control/c.png"}),
    ],
)
def test_a_picture_goes_with_all_that_is_its_own_and_comes_back(folder, picture, gone):
    before = tree(folder)
    entry = remove(folder, [picture], CONFIG, folder)
    left = tree(folder)
    assert {name for name in before if name not in left} == gone
    assert {name.removeprefix(f"{FOLDER}/{entry}/") for name in left if name.startswith(FOLDER)} == gone
    assert picture.rpartition("/")[2] not in {sample.path.name for one in scan(folder, CONFIG) for sample in one.samples}
    assert set(restore(folder, entry, folder)) == gone
    assert tree(folder) == before and not (folder / FOLDER).exists()


def test_what_another_picture_needs_stays(folder):
    Image.new("RGB", (8, 8), "blue").save(folder / "a.jpg")
    remove(folder, ["a.png"], CONFIG, folder)
    assert {"a.jpg", "a.txt", "a.mask.png", "a_control.png"} <= tree(folder).keys()


def test_nothing_takes_the_place_of_what_came_meanwhile(folder):
    entry = remove(folder, ["a.png"], CONFIG, folder)
    (folder / "a.txt").write_text("written since")
    before = tree(folder)
    with pytest.raises(AtelierError, match=r"a\.txt: another file has this name now"):
        restore(folder, entry, folder)
    assert tree(folder) == before
    (folder / "a.txt").unlink()
    restore(folder, entry, folder)
    assert (folder / "a.png").is_file()


@pytest.mark.parametrize("entry", ["..", "", "20260101-000000-abcdef", "../10_cat", "/etc"])
def test_only_entries_are_put_back(folder, entry):
    with pytest.raises(AtelierError, match="is not in"):
        restore(folder, entry, folder)


def test_what_came_into_a_folder_without_pictures_is_taken_back_too(tmp_path):
    (tmp_path / "walk.mp4").write_bytes(b"a film that nobody uses")
    (tmp_path / "walk.txt").write_text("a walk")
    take_back(tmp_path, ["walk.mp4"], CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["walk.txt"]


def test_a_mask_in_a_folder_beside_stays_where_it_is(tmp_path):
    """``cat_mask`` beside ``cat`` is another folder of the person's."""
    for place in ("cat/a.png", "cat_mask/a.png"):
        (tmp_path / place).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    entry = remove(tmp_path / "cat", ["a.png"], SubsetConfig("input/cat"), tmp_path)
    assert not (tmp_path / "cat/a.png").exists() and (tmp_path / "cat_mask/a.png").exists()
    assert restore(tmp_path / "cat", entry, tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", ["../x.png", "none.png", "a.txt", "/etc/passwd", FOLDER])
def test_only_pictures_of_the_folder_are_taken_out(folder, name):
    before = tree(folder)
    with pytest.raises(AtelierError, match="not in"):
        remove(folder, ["a.png", name], CONFIG, folder)
    assert tree(folder) == before


def test_all_go_or_none(folder, monkeypatch):
    import os

    before, rename, calls = tree(folder), os.rename, []

    def failing(start, end):
        calls.append(start)
        if len(calls) == 3:
            raise PermissionError(13, "Permission denied")
        rename(start, end)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(AtelierError, match="cannot be moved"):
        remove(folder, ["a.png", "b.jpg"], CONFIG, folder)
    assert tree(folder) == before


def test_the_caption_of_a_film_that_is_not_used_stays(folder):
    """A telephone's live photo is a picture and a film of one name."""
    write(folder / "a.mov", levels(3))
    entry = remove(folder, ["a.png"], CONFIG, folder)
    assert not (folder / "a.png").exists() and (folder / "a.txt").exists() and (folder / "a.mov").exists()
    restore(folder, entry, folder)
    assert (folder / "a.png").exists()


def test_a_film_that_leads_elsewhere_is_in_no_pictures_way(folder, tmp_path_factory):
    (folder / "far.mp4").symlink_to(write(tmp_path_factory.mktemp("far") / "far.mp4", levels(3)))
    remove(folder, ["b.jpg"], CONFIG, folder)
    assert not (folder / "b.jpg").exists() and (folder / "far.mp4").is_symlink()


def test_what_came_is_taken_back_with_what_belongs_to_it_by_now(folder):
    """``a.mask.png`` had come for a picture that was there; ``gone.png`` has been removed since."""
    before = tree(folder)
    (folder / "10_cat/new").mkdir()
    came = ["new.png", "10_cat/new/deep.png", "a.mask.png", "gone.png", "10_cat/new/notes.md"]
    for name in ("new.png", "10_cat/new/deep.png"):
        Image.new("RGB", (8, 8), "teal").save(folder / name)
    (folder / "new.txt").write_text("captioned since")
    (folder / "10_cat/new/notes.md").write_text("belongs to nothing")
    now = tree(folder)
    entry = take_back(folder, came, CONFIG, folder)
    left = {name: data for name, data in tree(folder).items() if not name.startswith(FOLDER)}
    assert left == {name: data for name, data in before.items() if name != "a.mask.png"}
    restore(folder, entry, folder)
    assert tree(folder) == now


@pytest.mark.parametrize("name", ["../x.png", "none.png", "/etc/passwd", FOLDER, "out/x.png", ".hidden.png", "10_cat"])
def test_only_files_of_the_folder_are_taken_back(folder, name, tmp_path_factory):
    far = tmp_path_factory.mktemp("far")
    (folder / "out").symlink_to(far)
    for place in (folder.parent / "x.png", far / "x.png", folder / ".hidden.png"):
        Image.new("RGB", (8, 8)).save(place)
    before = tree(folder)
    with pytest.raises(AtelierError, match="not there any more"):
        take_back(folder, [name], CONFIG, folder)
    assert tree(folder) == before and (folder.parent / "x.png").exists() and (far / "x.png").exists()


def test_what_is_put_aside_is_no_dataset(folder):
    remove(folder, ["b.jpg", "10_cat/c.png"], CONFIG, folder)
    assert not [name for name in list_folders({"input": folder.parent}) if FOLDER in name]


@given(st.lists(st.sampled_from(["a.png", "b.jpg", "10_cat/c.png"]), min_size=1, unique=True), st.randoms())
def test_any_order_of_taking_out_and_putting_back_loses_nothing(tmp_path_factory, names, random):
    folder = filled(tmp_path_factory.mktemp("set"))
    Image.new("RGB", (8, 8), "green").save(folder / "stays.png")
    before = tree(folder)
    entries = [remove(folder, [name], CONFIG, folder) for name in names]
    random.shuffle(entries)
    for entry in entries:
        restore(folder, entry, folder)
    assert tree(folder) == before


def test_a_file_that_something_reads_on_windows_is_told_as_such(folder, monkeypatch):
    import os

    def in_use(start, end):
        error = PermissionError(13, "in use by another process")
        error.winerror = 32  # as Windows says it
        raise error

    monkeypatch.setattr(os, "rename", in_use)
    with pytest.raises(
        AtelierError, match=r"a.png cannot be moved \(in use by another process\)\. Wait until nothing reads it any more"
    ):
        remove(folder, ["a.png"], CONFIG, folder)
