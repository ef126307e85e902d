"""The window "Pictures and captions": nothing that was typed is lost, and nothing is written over what nobody here has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.canvas.pretended import seen_by


@pytest.fixture(scope="module")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen_by("captions.mjs", root, tmp_path_factory.mktemp("page"))


def test_clicks_wait_for_each_other_and_what_is_not_saved_stays(seen: dict[str, Any]) -> None:
    assert seen["first"] == {"a.png": "a", "b.png": "b", "c.png": "c"}
    assert seen["asked"] == ["pictures/remove", "pictures", "pictures/turn", "pictures"]
    assert seen["afterTwo"] == {"b.png": "b, mine", "c.png": "c"}
    assert seen["undone"] == {"b.png": "b, mine", "c.png": "c", "a.png": "a"}


def test_control_pictures_stand_beside_their_picture(seen: dict[str, Any]) -> None:
    """In their order and numbered, each asked for in the folder where it is."""
    assert [len(shown) for shown in seen["controls"]] == [0, 2, 0]
    (first, where, source), (second, there, other) = seen["controls"][1]
    assert first != second and (where, there) == ("control/b.png", "b_2.png")
    assert "folder=input%2Fset&picture=control%2Fb.png" in source and "folder=input%2Fset_control&picture=b_2.png" in other


def test_a_folder_that_cannot_be_read_leaves_the_window_as_it_was(seen: dict[str, Any]) -> None:
    assert seen["away"] == [{"b.png": "b, mine", "c.png": "c", "a.png": "a"}, "the server is away"]


def test_what_somebody_else_wrote_meanwhile_is_not_written_over(seen: dict[str, Any]) -> None:
    assert seen["refused"] == ["b.png changed on the disk", "b, theirs", "b, mine"]
    assert seen["theirs"] == "b, theirs"
    assert seen["kept"] == ["c.png changed on the disk", "c, theirs"]


def test_a_step_that_cannot_be_taken_back_bars_no_other(seen: dict[str, Any]) -> None:
    assert seen["stuck"] == "it lies elsewhere" and seen["next"] == "pictures/turn"


def test_two_choices_are_told_apart_and_a_folder_that_is_not_read_is_said(seen: dict[str, Any]) -> None:
    assert seen["into"] == [[True, True, "input/set"], [False, True, "input/set"], [False, True, "input/set"]]
