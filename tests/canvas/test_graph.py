"""How the panels find what belongs together on the canvas: ``js/lib/graph.js`` on graphs that are built by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    module = tmp_path_factory.mktemp("module") / "graph.mjs"  # Node tells modules by their ending
    shutil.copyfile(root / "js" / "lib" / "graph.js", module)
    script = Path(__file__).parent / "graphs.mjs"
    done = subprocess.run([node, str(script), module.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_loader_is_found_through_other_nodes(found):
    assert found["loader"] == {"widget": "ckpt_name", "file": "a/b.safetensors"}


def test_what_lies_on_a_model_and_what_draws_is_found(found):
    """Only what counts: a LoRA that is bypassed, switched off or of no strength lies on nothing."""
    assert found["loras"] == ["x"]
    assert found["drawn"] == [None, {"model": {"widget": "ckpt_name", "file": "a/b.safetensors"}, "loras": ["p.safetensors"]}]
    assert found["guidance"] == [4, None]


def test_a_grid_draws_with_its_own_model(found):
    """Or with that of Train LoRA, which hands it on."""
    base, quick = ["base"], ["quick", "lightning"]
    assert found["draws"] == [[base, quick, base, base], [quick, quick, quick, base]]


def test_the_loader_is_found_across_sub_graphs(found):
    assert found["subgraph"] == {"widget": "unet_name", "file": "flux.safetensors"}


def test_an_id_is_followed_through_all_sub_graphs(found):
    """Nodes of several graphs have the number 1."""
    assert found["at"] == [0, 1, 2, 3, -1, -1, -1] and found["outputs"] == ["its", "its", None]


def test_what_is_not_there_is_not_found(found):
    assert found["none"] is None and found["ring"] is None and found["trainers"] == [1, 0]


def test_folders_come_in_the_order_in_which_they_are_chained(found):
    assert found["datasets"] == ["input/a", "input/b"] and found["bypassed"] == ["input/a"]


def test_folders_in_front_of_a_slider_say_from_what_it_learns(found):
    pairs = {"slider": "pairs of pictures"}
    assert found["sliders"] == [{"folder": "input/a", **pairs}, {"folder": "input/b", **pairs}, {"folder": "input/c"}]
    assert found["without"] == [None] * 3


def test_a_chain_that_only_a_run_can_count_is_not_guessed(found):
    assert found["unknown"] is None


def test_only_what_json_holds_exactly_is_sent(found):
    assert found["recipe"] == "ink" and found["values"] == {"name": "ink", "rank": 8}


def test_the_nodes_that_a_recipe_stands_with_are_found(found):
    """Another run's grid is none of them."""
    assert sorted(found["parts"]) == [
        "AutoCaption", "ConfigureLoRA", "EpochWeightGrid", "LoadDataset", "LoadDataset", "TrainLoRA",
    ]  # fmt: skip
    assert not found["otherGrid"]
