"""A training watched in the real canvas: its curve, its controls, and a page that is reloaded in between."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.browser.test_train_then_test import PLAYWRIGHT, browser
from lora_atelier.tests.host import support

# Far more steps than are trained before the test stops them.
LONG = {
    "preset": "own settings", "schedule": "constant", "warmup_steps": 0, "max_steps": 0, "epochs": 5000, "save_every": 0,
    "rank": 2, "learning_rate": 0.001, "precision": "auto", "gradient_checkpointing": False, "sample_every_steps": 25,
}  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def seen(request: pytest.FixtureRequest, comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw, on the classic canvas in dark colours and on the Vue one in light colours."""
    chromium, host = browser(), support.host("new")
    shots = Path(os.environ.get("ATELIER_SHOTS") or tmp_path_factory.mktemp("shots"))
    name = "watched-vue" if request.param else "watched-classic"
    widgets = {
        "LoadDataset": {"repeats": 1}, "ConfigureLoRA": {**LONG, "name": name}, "TrainLoRA": {"preview_steps": 1},
        "EpochWeightGrid": {"steps": 1, "prompts": "a fox", "strengths": "1.0"}, "KSampler": {"steps": 1},
    }  # fmt: skip
    task = {
        "url": host.server.url, "playwright": str(PLAYWRIGHT), "chromium": chromium, "shots": str(shots), "seconds": 120,
        "workflow": "/api/workflow_templates/lora-atelier/train_then_test.json", "widgets": widgets,
        "vue": request.param, "palette": "light" if request.param else "dark",
    }  # fmt: skip
    driver = Path(__file__).parent / "watch_training.mjs"
    done = subprocess.run(["node", str(driver), json.dumps(task)], capture_output=True, text=True, timeout=600)
    host.server.interrupt()
    for setting, value in (("Comfy.VueNodes.Enabled", False), ("Comfy.ColorPalette", "dark")):
        host.server.post(f"/settings/{setting}", value)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"name": name, "host": host}


def test_the_recipe_is_seen_before_it_is_queued(seen: dict[str, Any]) -> None:
    # Four pictures x 10 repeats at batch 8 in two buckets of two pictures: 3 + 3 steps, 8 epochs.
    assert "6 steps an epoch" in seen["outlook"]["text"] and seen["outlook"]["total"] == "48"
    assert "file about" in seen["outlook"]["text"] and "cosine: 8e-4" in seen["outlook"]["label"]
    assert "warmup: 10 steps, but the run has only 5" in seen["contradiction"]


def test_the_preset_of_the_model_is_filled_in(seen: dict[str, Any]) -> None:
    assert "The model is of the family SD3" in seen["suited"]["note"]
    assert (seen["suited"]["rank"], seen["suited"]["precision"]) == (16, "bf16")
    assert not seen["unset"]


def test_the_chart_moves_and_outlives_a_reload(seen: dict[str, Any]) -> None:
    assert seen["first"]["run"] == seen["later"]["run"] == seen["reloaded"]["run"] == seen["name"]
    assert seen["first"]["step"] < seen["later"]["step"] <= seen["reloaded"]["step"]
    assert "steps/s" in seen["later"]["text"] and "left" in seen["later"]["text"] and "memory" in seen["later"]["text"]
    assert [label for _, label, _ in seen["reloaded"]["buttons"] if not label] == []


def test_stop_and_keep_goes_on_with_the_workflow(seen: dict[str, Any]) -> None:
    assert seen["ended"]["name"] == "execution_success", seen["ended"]
    assert seen["finished"]["state"].startswith("finished at step")
    assert seen["finished"]["samples"] >= 2
    assert all(disabled for _, _, disabled in seen["finished"]["buttons"])
    files = sorted(path.name for path in (seen["host"].loras / "lora-atelier" / seen["name"]).iterdir())
    assert files[-1] == f"{seen['name']}.safetensors" and "-step" in files[0]


def test_the_page_reports_no_error_of_ours(seen: dict[str, Any]) -> None:
    assert not seen["pageErrors"]
    assert not [line for line in seen["consoleErrors"] if "lora-atelier" in line or "lora_atelier" in line]
