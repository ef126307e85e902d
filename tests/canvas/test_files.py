"""How files come from a drop to the server, on a page that is only pretended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.canvas.pretended import seen_by


@pytest.fixture(scope="module")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen_by("files.mjs", root, tmp_path_factory.mktemp("page"))


def test_a_preview_of_this_server_is_taken_and_no_other_address(seen: dict[str, Any]) -> None:
    first, second, *others = seen["held"]
    assert first == {"name": "a b.png", "held": {"filename": "a b.png", "subfolder": "x/y", "type": "output"}}
    assert second == {"name": "c.png", "held": {"filename": "c.png", "subfolder": "", "type": "output"}}
    assert others == [None] * 5
    assert seen["linked"] == [{"name": "p.png", "held": {"filename": "p.png", "subfolder": "", "type": "temp"}}]
    assert seen["may"] == [True, True, False, False]


def test_the_one_folder_around_a_drop_is_not_part_of_the_names(seen: dict[str, Any]) -> None:
    """One whose name means repeats, masks or control pictures is."""
    assert seen["folders"] == ["cats", "", "", "", "", ""] and seen["below"] == ["a.png", "b/c.png"]


def test_a_folder_is_read_to_its_end(seen: dict[str, Any]) -> None:
    assert seen["dropped"] == [
        ["cats/1.png", "1.png"], ["cats/in/2.png", "2.png"], ["cats/3.txt", "3.txt"], ["4.jpg", "4.jpg"],
    ]  # fmt: skip


def test_several_are_sent_at_a_time_and_what_fails_is_named(seen: dict[str, Any]) -> None:
    assert seen["most"] == 3 and seen["steps"][-1] == [11, 11] and len(seen["steps"]) == 11
    left = dict(seen["answer"]["left"])
    assert set(left) == {"cats/3 ü.png", "cats/4 ü.png", "x", "cats/film.mp4", "locked.png"} and len(seen["answer"]["new"]) == 9
    asked = seen["asked"]
    drawn = {"name": "drawn.png", "batch": 0, "filename": "drawn.png", "subfolder": "", "type": "output"}
    assert asked["folder"] == "input/cats" and drawn in asked["files"]
    staged = [one for one in asked["files"] if one["type"] == "temp"]
    assert len(staged) == 8 and all(re.fullmatch(r"lora-atelier-incoming/[0-9a-f]{16}", one["subfolder"]) for one in staged)
    assert all(re.fullmatch(r"\d+\.png", one["filename"]) for one in staged)


def test_a_drop_that_is_cancelled_brings_nothing(seen: dict[str, Any]) -> None:
    assert seen["aborted"] == "ended" and seen["askedAfter"] is None
    assert re.fullmatch(r"[0-9a-f]{16}", seen["forgotten"]), "what was sent is taken away"


def test_what_cannot_be_read_is_named_and_the_rest_comes(seen: dict[str, Any]) -> None:
    assert sorted(seen["broken"]) == [["half", False, True], ["half/1.png", True, False], ["half/2.png", False, True]]


def test_what_lies_beside_a_film_that_is_too_large_goes_to_no_other_picture(seen: dict[str, Any]) -> None:
    """The folder may have a cat.jpg without a caption, which would take that of cat.mp4."""
    left = [name for name, _ in seen["beside"]["left"] if name != "x"]
    texts = ["cat.txt", "Cat.mp4.TXT", "cat.short.txt", "cat.note"]
    beside = [*texts, "cat.mask.png", "cat_control_2.png", "walk.txt", "clip.001.txt"]
    assert left == ["cat.mp4", "dog.mp4", "walk.mp4", "clip.001.mp4", *beside]
    went = [name for name, _ in seen["beside"]["new"]]
    assert set(went) == {
        "cats.txt", "in/cat.txt", "cat.jpg.txt", "cat.final.jpg", "dog.txt", "dog.png", "walk.2.txt", "walk.2.png",
        "clip.png",
    }  # fmt: skip
