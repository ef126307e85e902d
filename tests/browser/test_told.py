"""What Load Dataset and Auto Caption say, read in the nodes of the real canvas."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from lora_atelier.tests.browser.driver import browser, drive, look, ours
from lora_atelier.tests.host import support
from PIL import Image

FOLDER = "phone"


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def seen(request: pytest.FixtureRequest, comfyui: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw of a folder as a telephone leaves it, with a dry run behind it."""
    browser()
    host, shots = support.host("new"), tmp_path_factory.mktemp("shots")
    folder = host.base / "input" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, size in (("IMG_1.jpg", (640, 480)), ("IMG_2.tiff", (480, 640))):
        Image.effect_noise(size, 60).convert("RGB").save(folder / name)
    for name in ("IMG_3.jxl", "IMG_4.cr2", "IMG_5.mp4", "scan.psd", "lost.txt", "notes.docx"):
        (folder / name).write_bytes(b"not for training")
    row = [
        ("LoadDataset", {"folder": f"input/{FOLDER}", "resolution": 256}),
        ("AutoCaption", {"captioner": "file name", "dry_run": True, "trigger": "ohwx"}),
    ]
    return drive("read_what_is_told", host, shots, row=row, **look(request.param))


def test_no_room_is_taken_before_there_is_something_to_say(seen: dict[str, Any]) -> None:
    assert seen["before"] == dict.fromkeys(("LoadDataset", "AutoCaption"))


def test_every_file_is_accounted_for_and_warnings_come_first(seen: dict[str, Any]) -> None:
    assert seen["ended"]["name"] == "execution_success", seen["ended"]
    told = seen["folded"]["LoadDataset"]
    assert told["visible"] and told["open"] == 0
    first, *_ = told["text"].splitlines()
    assert first == told["warnings"][0]
    assert "2 pictures x 1" in told["text"] and "2 steps an epoch" in told["text"]
    names = {"IMG_3.jxl", "IMG_4.cr2", "IMG_5.mp4", "scan.psd", "lost.txt", "notes.docx"}
    assert "not used (6)" in told["folds"] and names <= set(seen["unfolded"]["LoadDataset"]["cells"])


def test_the_buckets_are_a_table(seen: dict[str, Any]) -> None:
    assert "buckets (2)" in seen["folded"]["LoadDataset"]["folds"]
    assert {"320 x 192", "192 x 320"} <= set(seen["unfolded"]["LoadDataset"]["cells"])


def test_a_panel_grows_as_far_as_it_goes_and_the_rest_scrolls(seen: dict[str, Any]) -> None:
    folded, unfolded = (seen[state]["LoadDataset"]["height"] for state in ("folded", "unfolded"))
    assert 200 < folded <= unfolded <= 402, (folded, unfolded)


def test_the_whole_dry_run_is_read_in_the_node(seen: dict[str, Any]) -> None:
    told = seen["folded"]["AutoCaption"]
    assert told["visible"] and "2 captions would be written, 0 kept" in told["text"]
    assert "Dry run: nothing was changed on the disk." in told["text"] and "changes (2)" in told["folds"]
    cells = seen["unfolded"]["AutoCaption"]["cells"]
    assert cells[:3] == ["IMG_1.jpg", "(none)", "ohwx, IMG"] and "ohwx" in cells[6:]


def test_a_help_page_shows_its_pictures(seen: dict[str, Any]) -> None:
    assert len(seen["help"]) >= 2 and all(width > 100 for width in seen["help"]), seen["help"]


def test_the_page_reports_no_error_of_ours(seen: dict[str, Any]) -> None:
    assert not ours(seen)
