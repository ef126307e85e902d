"""The shipped workflows in the real canvas: all opened, and the demo's queued and its grid seen, as a person would."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.browser.driver import TEMPLATES, WORKFLOW, browser, drive, look, ours
from lora_atelier.tests.host import support

# The tiny random model needs no long training; everything else stays as it is shipped.
SHORT = {
    "LoadDataset": {"repeats": 1},
    # A name of its own: other tests on the same server queue the workflow with another length, and a run would ask about that.
    "ConfigureLoRA": {"name": "seen", "epochs": 2, "save_every": 1},
    "TrainLoRA": {"preview_steps": 1},
    "EpochWeightGrid": {"steps": 2},
    "KSampler": {"steps": 2},
}


RECIPES = [*sorted(path.stem for path in (support.ROOT / "workflows").glob("recipe_*.json")), "02 My 20 pictures on Z-Image"]


@pytest.fixture(scope="module", params=["new", "old"])
def seen(request: pytest.FixtureRequest, comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw on the canvas of either host."""
    browser()
    host = support.host(request.param)
    found = drive(
        "open_and_queue", host, tmp_path_factory.mktemp("shots"), seconds=400, workflow=WORKFLOW, widgets=SHORT,
        pictures=["PreviewImage", "SaveImage"],
        others={name: f"{TEMPLATES}/{name}.json" for name in RECIPES}, shootOthers="ATELIER_SHOTS" in os.environ,
    )  # fmt: skip
    return found | {"host": host}


def test_workflow_is_among_the_templates(seen: dict[str, Any]) -> None:
    assert "train_then_test" in seen["host"].server.get("/api/workflow_templates")["lora-atelier"]


def test_the_templates_are_in_the_order_of_their_names(seen: dict[str, Any]) -> None:
    names = seen["templates"]["lora-atelier"]
    assert names == sorted(names) and names[0].startswith("01 ") and names[-1] == "train_then_test"


def test_it_opens_without_a_missing_node(seen: dict[str, Any]) -> None:
    assert {"LoadDataset", "AutoCaption", "ConfigureLoRA", "TrainLoRA", "EpochWeightGrid"} <= set(seen["types"])
    assert not seen["unknown"] and not seen["missingText"] and not seen["dialogs"], seen


def test_widgets_keep_their_values(seen: dict[str, Any]) -> None:
    """What the canvas shows is what the file says: no value slipped into a neighbour's place."""
    assert seen["widgets"] == seen["stored"]
    assert not seen["unset"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_every_node_value_and_wire(seen: dict[str, Any], name: str) -> None:
    """Also where the person has none of its models and folders yet."""
    found = seen["others"][name]
    assert not found["unknown"] and not found["missingText"] and not found["dialogs"], found
    assert found["widgets"] == found["stored"]
    # The page may write a number as a text.
    assert [[int(part) for part in link] for link in found["links"]] == found["storedLinks"]


def test_the_page_reports_no_error_of_ours(seen: dict[str, Any]) -> None:
    assert not ours(seen)


def test_it_runs_and_the_grid_is_seen(seen: dict[str, Any]) -> None:
    end = seen["ended"]
    assert end["name"] == "execution_success", (end["detail"].get("node_type"), end["detail"].get("exception_message"))
    assert not seen["dialogsAfter"]
    for node in ("PreviewImage", "SaveImage"):
        assert seen["pictures"][node], f"{node} shows no picture"
    width, height = seen["pictures"]["PreviewImage"][0]
    assert seen["page"]["width"] > 100 and seen["page"]["inside"] and "Hint:" in seen["page"]["text"], seen["page"]
    assert width >= 3 * 128 and height >= 3 * 128, "three columns and three rows of cells"


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def chosen(request: pytest.FixtureRequest, seen: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen while a cell was chosen."""
    name = f"chosen-{'vue' if request.param else 'classic'}"
    shots = tmp_path_factory.mktemp("shots")
    found = drive("look_and_choose", seen["host"], shots, seconds=60, workflow=WORKFLOW, name=name, **look(request.param))
    return found | {"name": name, "host": seen["host"]}


def test_the_grid_is_walked_over_and_compared(chosen: dict[str, Any]) -> None:
    assert chosen["cells"] >= 9 and chosen["unnamed"] == 0
    assert "Use this one" in chosen["opened"]["disabled"] and not chosen["opened"]["large"]
    assert chosen["walked"]["focused"] == "2,1" and chosen["walked"]["pressed"] == ["2,1"]
    assert "strength" in chosen["walked"]["large"][0]
    assert len(chosen["compared"]["large"]) == 2 and chosen["compared"]["large"][1].startswith("no LoRA")
    filled = chosen["filled"]
    assert filled["dialog"] > 0.9 and (0.85 < filled["table"] <= 1 or filled["cell"] == 512), "the window uses its width"
    assert chosen["width"] == pytest.approx(230, abs=2)


def test_a_favourite_keeps_its_mark(chosen: dict[str, Any]) -> None:
    assert chosen["marked"]["stars"] == ["2,1"] == chosen["again"]["stars"]


def test_the_chosen_lora_is_in_the_stock_loader(chosen: dict[str, Any]) -> None:
    loader, name = chosen["loader"], f"{chosen['name']}.safetensors"
    assert (loader["lora"], loader["listed"]) == (name, True)
    assert loader["model"] == loader["clip"] == 0.8
    kept = chosen["host"].loras / name
    epochs = (kept.parent / "lora-atelier").glob("*/*.safetensors")
    assert kept.read_bytes() in [path.read_bytes() for path in epochs]
    assert not ours(chosen)
