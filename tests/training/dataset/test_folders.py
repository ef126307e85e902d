"""Folder names that travel in shared workflows."""

from __future__ import annotations

import os

import pytest
from lora_atelier.training.dataset import folders
from lora_atelier.training.dataset.folders import list_folders, resolve_folder
from lora_atelier.training.errors import AtelierError
from PIL import Image


@pytest.fixture
def roots(tmp_path):
    roots = {"input": tmp_path / "input", "datasets": tmp_path / "datasets"}
    for root in roots.values():
        root.mkdir()
    return roots


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_folders_with_pictures_are_listed_however_deep(roots):
    picture(roots["input"] / "loose.png")
    picture(roots["input"] / "set10" / "1.png")
    picture(roots["input"] / "set9" / "1.JPG".lower())
    picture(roots["input"] / "a" / "b" / "c" / "1.png")
    picture(roots["input"] / "a" / "b" / "c" / "d" / "1.png")
    picture(roots["input"] / ".hidden" / "1.png")
    (roots["input"] / "empty").mkdir()
    picture(roots["datasets"] / "faces" / "5_ohwx" / "1.png")
    assert list_folders(roots) == [
        "datasets/faces", "datasets/faces/5_ohwx", "input/a/b/c", "input/a/b/c/d", "input/set9", "input/set10",
    ]  # fmt: skip


def test_every_listed_folder_resolves(roots):
    picture(roots["input"] / "über set" / "1.png")
    for name in list_folders(roots):
        assert resolve_folder(name, roots) == roots["input"] / "über set"


def test_missing_roots_are_no_error(tmp_path):
    assert list_folders({"datasets": tmp_path / "nothing"}) == []


def test_a_loop_of_links_ends(roots):
    picture(roots["input"] / "a" / "1.png")
    (roots["input"] / "a" / "again").symlink_to(roots["input"])
    assert list_folders(roots) == ["input/a"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "input",
        "/etc",
        "../x",
        "input/../../etc",
        "input/..",
        "output/x",
        "C:\\x",
        "input\\x",
        "input/a\0b",
        "C:/x",
        "input/a/../b",
    ],
)
def test_names_that_lead_elsewhere_are_refused(roots, name):
    with pytest.raises(AtelierError, match=r"^folder: .* is not a folder in input/ or datasets/"):
        resolve_folder(name, roots)


def test_a_missing_folder_of_a_shared_workflow_is_named(roots):
    with pytest.raises(AtelierError, match=r"folder: 'input/portraits' does not exist here"):
        resolve_folder("input/portraits", roots)


def test_a_link_out_of_the_root_is_neither_listed_nor_resolved(roots, tmp_path):
    picture(tmp_path / "private" / "1.png")
    (roots["input"] / "link").symlink_to(tmp_path / "private")
    assert list_folders(roots) == []
    with pytest.raises(AtelierError, match="'input/link' is a link that leads out of input/"):
        resolve_folder("input/link", roots)


def test_links_inside_a_root_are_listed_and_loops_are_not(roots):
    picture(roots["input"] / "sets" / "faces" / "1.png")
    (roots["input"] / "shortcut").symlink_to(roots["input"] / "sets" / "faces")
    (roots["input"] / "sets" / "up").symlink_to(roots["input"])
    (roots["input"] / "sets" / "faces" / "self").symlink_to(roots["input"] / "sets")
    assert list_folders(roots) == ["input/sets/faces", "input/shortcut"]
    assert resolve_folder("input/shortcut", roots) == roots["input"] / "shortcut"


def test_what_other_programs_keep_and_masks_are_not_listed(roots):
    base = roots["input"] / "set"
    for name in ("1.png", "masks/1.png", "Mask/1.png", "@eaDir/1.png", "__MACOSX/1.png", "sub/2.jfif"):
        if name.endswith(".jfif"):
            (base / "sub").mkdir()
            Image.new("RGB", (4, 4)).save(base / name, "JPEG")
        else:
            picture(base / name)
    picture(roots["input"] / "masks" / "venice.png")
    assert list_folders(roots) == ["input/masks", "input/set", "input/set/sub"]


def test_what_is_not_offered_is_logged_once(roots, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(folders, "_said", set())
    picture(tmp_path / "private" / "1.png")
    (roots["input"] / "link").symlink_to(tmp_path / "private")
    os.mkdir(os.fsencode(roots["input"]) + b"/caf\xe9")
    for _ in range(2):
        assert list_folders(roots) == []
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and any("input/link is not offered, since it is a link" in line for line in lines)
    assert any(r"input/caf\xe9 is not offered, since its name is not UTF-8" in line for line in lines)


def test_so_many_folders_that_the_list_ends_say_so(roots, caplog, monkeypatch):
    monkeypatch.setattr(folders, "_said", set())
    monkeypatch.setattr(folders, "MOST", 10)
    for number in range(12):
        picture(roots["input"] / f"{number}" / "deep" / "1.png")
    picture(roots["input"] / "near" / "1.png")
    assert "input/near" in list_folders(roots)
    assert any("holds more than 10 folders; those that lie deepest are not offered" in r.getMessage() for r in caplog.records)


def test_a_name_that_is_no_utf8_is_refused_in_words(roots):
    with pytest.raises(AtelierError, match=r"folder: the name 'input/caf\\xe9' is not UTF-8\. Rename the folder"):
        resolve_folder("input/caf\udce9", roots)


@pytest.mark.parametrize("name", ["input/" + "x" * 300, "input/" + "a/" * 3000, "input/a\ud800"])
def test_impossible_names_give_a_sentence(roots, name):
    with pytest.raises(AtelierError, match=r"^folder: "):
        resolve_folder(name, roots)
