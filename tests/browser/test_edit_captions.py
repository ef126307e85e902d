"""Captions edited by hand in the real canvas: what is typed, applied to all, taken back and saved."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from lora_atelier.tests.browser.driver import WORKFLOW, browser, drive, look, ours
from lora_atelier.tests.host import support

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
    widgets = {"LoadDataset": {"folder": f"input/{FOLDER}"}}
    found = drive("edit_captions", host, shots, workflow=WORKFLOW, widgets=widgets, **look(request.param))
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    return found | {"files": files}


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
    assert seen["files"] == {"black circle.txt": "a circle, by hand\n", "red square.txt": "a square, red"}
    assert not ours(seen)
