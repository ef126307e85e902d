"""Nodes at the size of what shows, hidden widgets in groups, and panels that cover nothing, on the real canvas."""

from __future__ import annotations

from typing import Any

import pytest
from lora_atelier.tests.browser.driver import browser, drive, look, ours
from lora_atelier.tests.host import support

ROW = {
    "LoadDataset": {"folder": "input/shapes", "resolution": 64},
    "AutoCaption": {"captioner": "file name", "dry_run": True},
}
GROUPS = [
    "Shape of the LoRA", "Text encoder and prompts", "Optimizer and schedule", "Noise and its levels", "Loss and preservation",
    "Saving, samples and stopping", "Memory, speed and precision",
]  # fmt: skip


@pytest.fixture(scope="module", params=[("new", False), ("new", True), ("old", False)], ids=["classic", "vue", "old"])
def seen(request: pytest.FixtureRequest, comfyui: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw; the oldest host has no groups of its own either."""
    browser()
    name, vue = request.param
    shots = tmp_path_factory.mktemp("shots")
    return drive(
        "sizes", support.host(name), shots, kinds=list(support.NODES), row=ROW, properties=name == "new", **look(vue)
    ) | {"host": name, "vue": vue}


def test_a_fresh_node_is_as_high_as_what_shows(seen: dict[str, Any]) -> None:
    for kind, node in seen["fresh"].items():
        assert node["height"] <= 720, (kind, node)
    assert seen["fresh"]["ConfigureLoRA"]["height"] <= 680


def test_hiding_the_advanced_widgets_gives_the_room_back(seen: dict[str, Any]) -> None:
    grown = [kind for kind, node in seen["advanced"].items() if node["height"] > seen["fresh"][kind]["height"]]
    assert {"LoadDataset", "AutoCaption", "ConfigureLoRA", "TrainLoRA", "EpochWeightGrid"} <= set(grown)
    for kind, node in seen["hidden"].items():
        assert node["height"] == pytest.approx(seen["fresh"][kind]["height"], abs=2), kind
        assert node["stored"] == pytest.approx(seen["fresh"][kind]["stored"], abs=2), kind


def test_hidden_widgets_are_in_groups_under_headings(seen: dict[str, Any]) -> None:
    titles = seen["folded"]["titles"]
    assert [title.rsplit(" (", 1)[0] for title in titles] == [f"▸ {title}" for title in GROUPS]
    counts = [int(title.rsplit("(", 1)[1].rstrip(")")) for title in titles]
    given = support.host(seen["host"]).info["ConfigureLoRA"]["input"]
    folded = [name for part in ("required", "optional") for name, spec in given.get(part, {}).items() if spec[1].get("advanced")]
    assert sum(counts) == len(folded) > 60 and seen["folded"]["shown"] == []
    assert "shift" in seen["unfolded"]["shown"] and "dropout" not in seen["unfolded"]["shown"]
    assert seen["unfolded"]["titles"][3].startswith("▾ ") and seen["unfolded"]["titles"][3].endswith("changed: 1")
    assert seen["opened"]["ConfigureLoRA"]["height"] > seen["advanced"]["ConfigureLoRA"]["height"] + 200


def test_values_are_stored_in_the_order_of_the_nodes_inputs(seen: dict[str, Any]) -> None:
    """Whatever the order in which they are drawn: workflows keep values by place."""
    spec = support.host(seen["host"]).info["ConfigureLoRA"]
    names = [name for part in ("required", "optional") for name in spec["input_order"][part]]
    values = dict(zip(names, seen["unfolded"]["values"], strict=True))
    assert values["shift"] == 3 and values["algorithm"] == "LoRA" and values["speed"] == "auto" and values["name"] == "my-lora"
    assert seen["unfolded"]["copied"] == seen["unfolded"]["values"]


def test_the_properties_panel_leaves_a_nodes_panel_as_it_was(seen: dict[str, Any]) -> None:
    assert len(seen["widths"]) >= 2 and seen["after"] == seen["widths"]


def test_what_a_node_says_and_shows_covers_no_other(seen: dict[str, Any]) -> None:
    assert seen["ended"]["name"] == "execution_success", seen["ended"]
    above, below = seen["told"]["LoadDataset"], seen["told"]["AutoCaption"]
    assert below["place"][1] - 30 >= above["place"][1] + above["height"]
    assert seen["pictures"]["count"] == 4 and seen["pictures"]["inside"] and seen["pictures"]["height"] <= 320


def test_it_is_there_again_after_a_reload(seen: dict[str, Any]) -> None:
    assert "4 pictures x 1" in seen["again"]["text"]
    assert (seen["again"]["text"], seen["again"]["count"]) == (seen["pictures"]["text"], 4)


def test_the_page_reports_no_error_of_ours(seen: dict[str, Any]) -> None:
    assert not ours(seen)
