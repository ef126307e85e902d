"""Own presets and other trainers' configurations in the real canvas, in both renderers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.browser.driver import WORKFLOW, browser, drive, look, ours
from lora_atelier.tests.host import support
from lora_atelier.tests.training.starting.test_imported import KOHYA


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def seen(request: pytest.FixtureRequest, comfyui: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    browser()
    folder: Path = tmp_path_factory.mktemp("settings")
    file = folder / "kohya.toml"
    file.write_text(KOHYA, encoding="utf-8")
    return drive(
        "own_settings", support.host("new"), folder, workflow=WORKFLOW, file=str(file), preset="my ink", **look(request.param)
    )


def test_a_preset_is_kept_listed_and_taken_over_without_what_is_personal(seen: dict[str, Any]) -> None:
    assert "my ink" in seen["listed"] and seen["own"] == [12, 17, "kept"] and not seen["unset"]


def test_a_configuration_tells_what_it_sets_and_what_is_lost(seen: dict[str, Any]) -> None:
    assert "kohya's trainer" in seen["told"] and "rank: 32" in seen["told"]
    assert "face_crop_aug_range" in seen["told"] and "no counterpart" in seen["told"]
    assert seen["imported"] == [32, 1024]
    assert "Taken over from kohya's trainer" in seen["said"] and "rank 12 → 32" in seen["said"]
    assert seen["reset"] == 1 and "highest_level 0.7 → 1" in seen["said"]


def test_an_import_is_taken_back_and_what_the_settings_are_for_is_kept(seen: dict[str, Any]) -> None:
    assert seen["back"] == [12, 0.7] and seen["start"]["subject"] == "person"


def test_the_page_reports_no_error_of_ours(seen: dict[str, Any]) -> None:
    assert not ours(seen)
