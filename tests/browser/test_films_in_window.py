"""Films in the window of pictures and captions and in that which adds pictures, on the real canvas."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.browser.driver import browser, drive, look, ours
from lora_atelier.tests.host import support
from lora_atelier.tests.training.dataset.made_films import levels, write
from PIL import Image

FOLDER = "filmed-set"
WIDGETS = {
    "LoadDataset": {
        "folder": f"input/{FOLDER}", "resolution": 64, "bucket_step": 16, "clip_frames": "1, 9", "clip_start": "chunks",
    },
    "AutoCaption": {"captioner": "file name", "pattern": "drawn, {name}", "pause": True},
}  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def seen(request: pytest.FixtureRequest, comfyui: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw, and the files at its end."""
    browser()
    host, shots, own = support.host("new"), tmp_path_factory.mktemp("shots"), tmp_path_factory.mktemp("films")
    folder = host.base / "input" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write(folder / "walk.mp4", levels(24, (96, 64)), 12)
    write(folder / "run.mp4", levels(10, (96, 64), seed=1))
    Image.new("RGB", (96, 64), "orange").save(folder / "still.png")
    (folder / "walk.txt").write_text("someone walks", encoding="utf-8")
    drawn = write(host.base / "output" / "drawn film.mp4", levels(8, (96, 64), seed=2))
    dropped = write(own / "jump.mp4", levels(20, (96, 64), seed=3)).read_bytes()
    films = {"jump.mp4": dropped, "jump.txt": b"someone jumps", "none.mkv": b"no film"}
    sent = {name: base64.b64encode(data).decode() for name, data in films.items()}
    found = drive("films_in_window", host, shots, widgets=WIDGETS, films=sent, **look(request.param))
    drawn.unlink()
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    return found | {"files": files, "there": {path.name for path in folder.glob("*.m*")}, "folder": Path(folder)}


def test_a_film_is_one_row_with_its_length_its_clips_and_its_sign(seen: dict[str, Any]) -> None:
    rows = seen["opened"]["rows"]
    assert not seen["unset"] and [*rows] == ["run.mp4", "still.png", "walk.mp4"] and not ours(seen)
    assert "film of 24 frames (2 s) · 2 clips of 9 frames" in rows["walk.mp4"]["facts"]
    assert "film of 10 frames (0.42 s) · 1 clip of 9 frames" in rows["run.mp4"]["facts"]
    assert [row["isFilm"] for row in rows.values()] == [True, False, True] and "film" not in rows["still.png"]["facts"]
    assert seen["opened"]["said"].startswith("1 picture · 2 films")


def test_films_are_not_turned_and_that_is_said(seen: dict[str, Any]) -> None:
    rows = seen["opened"]["rows"]
    assert [disabled for disabled, _ in rows["still.png"]["turns"]] == [False, False]
    assert all(off and "every frame would have to be encoded anew" in why for off, why in rows["walk.mp4"]["turns"])


def test_films_without_captions_are_found_and_theirs_are_saved_beside_them(seen: dict[str, Any]) -> None:
    assert seen["opened"]["tags"] == ["without caption (2)", "someone walks (1)"]
    assert [name for name, row in seen["without"]["rows"].items() if not row["hidden"]] == ["run.mp4", "still.png"]
    assert seen["files"]["run.txt"] == "someone runs\n" and seen["files"]["walk.txt"] == "someone walks"


def test_a_film_is_taken_out_with_its_caption_and_put_back(seen: dict[str, Any]) -> None:
    assert [*seen["out"]["rows"]] == ["run.mp4", "still.png"]
    assert seen["back"]["rows"]["walk.mp4"]["caption"] == "someone walks"


def test_a_film_that_is_dropped_comes_with_its_caption_and_what_is_none_is_named(seen: dict[str, Any]) -> None:
    assert seen["dropped"]["rows"]["jump.mp4"]["caption"] == "someone jumps"
    assert "2 files came into input/filmed-set · 1 left out" in seen["dropped"]["said"]
    assert "none.mkv: this film cannot be read" in seen["dropped"]["said"] and "clip_frames" not in seen["dropped"]["said"]


def test_a_films_caption_is_asked_again_also_while_the_run_waits(seen: dict[str, Any]) -> None:
    assert seen["again"]["rows"]["walk.mp4"]["caption"] == "drawn, walk"
    assert seen["paused"]["rows"]["still.png"]["caption"] == "drawn, still" and seen["ended"] == "execution_success"
    assert seen["paused"]["rows"]["walk.mp4"]["caption"] == "someone walks"


def test_where_films_are_not_used_that_is_said(seen: dict[str, Any]) -> None:
    sentence = "1 of them is a film, which is not used until clip_frames of Load Dataset is set"
    assert sentence in seen["unused"]["said"] and "None of the new files" not in seen["unused"]["said"]
    assert [*seen["unused"]["rows"]] == ["still.png"]
    assert seen["made"][0] == ["drawn film.mp4", True]
    assert "2 of them are films, which are not used until" in seen["added"]
    assert {"another jump.mp4", "drawn film.mp4", "unused jump.mp4"} <= seen["there"]
