"""The window "Pictures and captions": nothing that was typed is lost, and nothing is written over what nobody here has seen."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.canvas.test_panels import API, APP


@pytest.fixture(scope="module")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    page = tmp_path_factory.mktemp("page")
    shutil.copytree(root / "js", page / "extensions" / "lora-atelier")
    (page / "scripts").mkdir()
    (page / "scripts" / "app.js").write_text(APP)
    (page / "scripts" / "api.js").write_text(API)
    (page / "package.json").write_text('{"type": "module"}')
    script = Path(__file__).parent / "captions.mjs"
    done = subprocess.run([node, str(script), page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_clicks_wait_for_each_other_and_what_is_not_saved_stays(seen: dict[str, Any]) -> None:
    assert seen["first"] == {"a.png": "a", "b.png": "b", "c.png": "c"}
    assert seen["asked"] == ["pictures/remove", "pictures", "pictures/turn", "pictures"]
    assert seen["afterTwo"] == {"b.png": "b, mine", "c.png": "c"}
    assert seen["undone"] == {"b.png": "b, mine", "c.png": "c", "a.png": "a"}


def test_a_folder_that_cannot_be_read_leaves_the_window_as_it_was(seen: dict[str, Any]) -> None:
    assert seen["away"] == [{"b.png": "b, mine", "c.png": "c", "a.png": "a"}, "the server is away"]


def test_what_somebody_else_wrote_meanwhile_is_not_written_over(seen: dict[str, Any]) -> None:
    assert seen["refused"] == ["b.png changed on the disk", "b, theirs", "b, mine"]
    assert seen["theirs"] == "b, theirs"
    assert seen["kept"] == ["c.png changed on the disk", "c, theirs"]


def test_a_step_that_cannot_be_taken_back_bars_no_other(seen: dict[str, Any]) -> None:
    assert seen["stuck"] == "it lies elsewhere" and seen["next"] == "pictures/turn"
