"""Captions edited by hand in the real canvas: what is typed, applied to all, taken back and saved."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from lora_atelier.tests.browser.driver import WORKFLOW, browser, drive, look, ours
from lora_atelier.tests.host import support
from lora_atelier.tests.training.dataset.test_heads import photo
from PIL import Image

FOLDER = "edited"


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def seen(request: pytest.FixtureRequest, comfyui: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw, and the caption files at its end."""
    browser()
    host, shots = support.host("new"), tmp_path_factory.mktemp("shots")
    folder = host.base / "input" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    support.draw_dataset(folder)
    (folder / "red square.txt").write_text("a square, red", encoding="utf-8")
    drawn = host.base / "output" / "drawn before.png"
    Image.new("RGB", (64, 96), "teal").save(drawn)
    faces = host.base / "input" / "faces"
    faces.mkdir(exist_ok=True)
    photo((500, 200, 160)).save(faces / "one.png")
    widgets = {"LoadDataset": {"folder": f"input/{FOLDER}"}}
    found = drive("edit_captions", host, shots, workflow=WORKFLOW, widgets=widgets, faces="input/faces", **look(request.param))
    drawn.unlink()
    aside = folder / ".removed-pictures"
    there = [path for path in folder.rglob("*.*") if not path.is_relative_to(aside)]
    files = {path.name: path.read_text(encoding="utf-8") for path in there if path.suffix == ".txt"}
    pictures = {path.relative_to(folder).as_posix() for path in there if path.suffix == ".png"}
    return found | {"files": files, "pictures": pictures, "aside": {path.name for path in aside.rglob("*.*")}}


def test_every_picture_is_there_with_its_caption(seen: dict[str, Any]) -> None:
    assert not seen["unset"] and seen["unnamed"] == 0
    assert sorted(seen["opened"]["captions"]) == ["", "", "", "a square, red"]
    assert "Save" in seen["opened"]["disabled"]


def test_what_is_done_to_all_is_taken_back_at_once(seen: dict[str, Any]) -> None:
    assert all("drawn" in caption for caption in seen["added"]["captions"])
    assert seen["undone"]["captions"][0] == "a circle, by hand"
    assert not any("drawn" in caption for caption in seen["undone"]["captions"])


def test_captions_are_found_by_part_of_a_tag_by_the_list_and_by_their_absence(seen: dict[str, Any]) -> None:
    assert seen["tags"] == ["without caption (2)", "a circle (1)", "a square (1)", "by hand (1)", "red (1)"]
    assert seen["filtered"]["shown"] == 1 and seen["without"]["shown"] == 2 and seen["red"]["shown"] == 1
    assert seen["saved"]["shown"] == 4


def test_no_step_back_is_empty(seen: dict[str, Any]) -> None:
    assert "Undo" in seen["takenBack"]["disabled"] and seen["takenBack"]["captions"][0] == ""


def test_only_what_was_edited_is_written(seen: dict[str, Any]) -> None:
    assert seen["filtered"]["shown"] == 1 and seen["saved"]["said"].startswith("1 ")
    assert seen["files"] == {
        "black circle.txt": "a circle, by hand\n", "red square.txt": "a square, red", "red square (2).txt": "a purple one",
        **{f"{name}.txt": f"drawn, {name}\n" for name in ("blue circle", "green square")},
    }  # fmt: skip
    assert not ours(seen)


def test_a_picture_is_turned_and_taken_out_and_both_are_taken_back(seen: dict[str, Any]) -> None:
    """What was typed and not saved stays meanwhile."""
    assert seen["turned"]["captions"][1] == "not saved yet" == seen["out"]["captions"][1] == seen["back"]["captions"][1]
    assert len(seen["out"]["captions"]) == 3 and len(seen["back"]["captions"]) == 4
    assert seen["turned"]["facts"][0].startswith("black circle.png: 96 × 192")
    assert seen["back"]["facts"][0].startswith("black circle.png: 192 × 96")


def test_what_is_dropped_on_the_window_takes_no_pictures_place(seen: dict[str, Any]) -> None:
    assert (
        "2 files came into input/edited" in seen["dropped"]["said"]
        and "film.mp4: this film cannot be read" in seen["dropped"]["said"]
    )
    assert "a purple one" in seen["dropped"]["captions"]


def test_what_was_dropped_is_put_aside_by_undo(seen: dict[str, Any]) -> None:
    """Never removed for good, and what was typed and not saved stays."""
    assert seen["putAside"]["said"] == "2 files that had come were put aside, into .removed-pictures"
    assert len(seen["dropped"]["captions"]) == 5 and seen["putAside"]["captions"] == seen["back"]["captions"]
    assert seen["aside"] == {"red square (2).png", "red square (2).txt"}


def test_what_is_dropped_on_the_node_or_was_drawn_here_goes_into_the_folder_of_choice(seen: dict[str, Any]) -> None:
    assert seen["accepted"] == [True, True] and seen["adding"]["folder"] == f"input/{FOLDER}"
    assert seen["adding"]["said"] == f"2 files came into input/{FOLDER}/25_orange"
    assert seen["pictures"] == {
        *(f"{name}.png" for name in support.PICTURES), "red square (2).png", "25_orange/new one.png",
        "25_orange/drawn before.png",
    }  # fmt: skip


def test_one_caption_is_asked_again_and_nothing_is_written(seen: dict[str, Any]) -> None:
    assert seen["again"]["captions"][0] == "drawn, black circle"
    assert seen["files"]["black circle.txt"] == "a circle, by hand\n"


def test_the_run_waits_until_it_is_told_to_go_on(seen: dict[str, Any]) -> None:
    paused, went = seen["paused"], seen["went"]
    assert paused["visible"] and paused["ended"] is None and "The run waits for you" in paused["text"]
    assert "2 captions written" in paused["text"] and "Go on" in paused["text"]
    assert went["ended"] == "execution_success" and went["hidden"]


def test_the_frame_is_a_square_around_the_head(seen: dict[str, Any]) -> None:
    """The face stands from 500 to 660 of 900 pixels, and some room is left around it."""
    head = seen["head"]
    assert head["width"] == pytest.approx(head["height"], rel=0.05) and "bucket 128 × 128" in head["facts"]
    assert 0.3 < head["left"] < 500 / 900
