"""Folder names that travel in shared workflows."""

from __future__ import annotations

import pytest
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
