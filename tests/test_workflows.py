"""The workflows that the pack ships: whole, tidy, free of anybody's paths, and known to both hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo import workflow as canvas
from lora_atelier.tests.host import support

WORKFLOWS = sorted((support.ROOT / "workflows").glob("*.json"))
TITLE_HEIGHT = 30  # px that the canvas draws above a node's own rectangle
ELSEWHERE = re.compile(r"^(/|~|\.\.|[A-Za-z]:[\\/]|\\\\|file:)|/home/|/Users/|\\")
# Combos that list what a person has put into a folder; a recipe names what the person is asked to put there.
PERSONAL = {
    ("LoadDataset", "folder"), ("AutoCaption", "captioner"), ("CheckpointLoaderSimple", "ckpt_name"), ("UNETLoader", "unet_name"),
    ("DualCLIPLoader", "clip_name1"), ("DualCLIPLoader", "clip_name2"), ("VAELoader", "vae_name"),
    ("CLIPLoader", "clip_name"), ("UpscaleModelLoader", "model_name"), ("LoadImageTextDataSetFromFolder", "folder"),
    ("LoraLoaderModelOnly", "lora_name"),
}  # fmt: skip
NEWER = {"krea2"}
"""Types of text encoders that the oldest host does not know; its loader says so when the template is queued."""
NEWER_NODES = {"SAM3_Detect"}
"""Nodes that the oldest host does not have; the template's note says so."""
# Only there to shorten the training: what is run is the workflow as it is shipped.
SHORT = {
    ("ConfigureLoRA", "epochs"): 1,
    ("LoadDataset", "repeats"): 1,
    ("TrainLoRA", "preview_steps"): 1,
    ("EpochWeightGrid", "steps"): 1,
    ("KSampler", "steps"): 1,
}


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text(encoding="utf-8"))


@pytest.fixture(params=["new", "old"])
def host(request: pytest.FixtureRequest, comfyui: Path, comfyui_old: Path) -> support.Host:
    return support.host(request.param)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def is_demo(workflow: dict[str, Any]) -> bool:
    """Made of what ``studio.py`` brings; the others are recipes for the person's own models and pictures."""
    return any("lora-atelier-demo" in text for text in texts(workflow))


def test_there_is_a_workflow() -> None:
    assert "train_then_test" in [path.stem for path in WORKFLOWS]


def test_every_node_is_known(workflow: dict[str, Any], host: support.Host) -> None:
    unknown = {n["type"] for n in workflow["nodes"]} - host.info.keys() - canvas.NOT_EXECUTED
    assert unknown <= (NEWER_NODES if host.name == "old" else set())


def test_widgets_match_the_nodes(workflow: dict[str, Any], host: support.Host) -> None:
    """As many stored values as the node has widgets (seeds have one more), and each of a fitting type."""
    for node in workflow["nodes"]:
        if node["type"] in canvas.NOT_EXECUTED or node["type"] not in host.info:
            continue
        expected = []
        for name, kind, options, _ in canvas.input_specs(host.info[node["type"]]):
            if canvas.is_widget(kind, options):
                expected.append((name, kind, options))
                if options.get("control_after_generate", kind == "INT" and name in canvas.SEED_NAMES):
                    expected.append((name + " (after)", list(canvas.AFTER_GENERATE), {}))
        values = node.get("widgets_values", [])
        assert len(values) == len(expected), f"{node['type']}: {[name for name, _, _ in expected]}"
        for (name, kind, options), value in zip(expected, values, strict=True):
            if host.name == "old" and value in NEWER:
                continue
            if (node["type"], name) in PERSONAL and not is_demo(workflow):
                assert isinstance(value, str) and value
            else:
                assert fits(value, kind, options), f"{node['type']}.{name}: {value!r}"


def fits(value: Any, kind: Any, options: dict[str, Any]) -> bool:
    choices = kind if isinstance(kind, list) else options.get("options")
    if kind == "COMBO" or choices is not None:
        return value in (choices or [])
    low, high = options.get("min", float("-inf")), options.get("max", float("inf"))
    return {
        "INT": lambda: isinstance(value, int) and low <= value <= high,
        "FLOAT": lambda: isinstance(value, (int, float)) and low <= value <= high,
        "BOOLEAN": lambda: isinstance(value, bool),
        "STRING": lambda: isinstance(value, str),
    }[kind]()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_values_stand_where_the_nodes_have_them_now(path: Path, comfyui: Path) -> None:
    """A node has got, lost or moved a widget, or a preset another value: ``python3 studio.py workflows`` writes them anew."""
    text = path.read_text(encoding="utf-8")
    presets = json.loads((support.ROOT / "js" / "presets.json").read_text(encoding="utf-8"))
    assert canvas.to_text(canvas.restored(json.loads(text), support.host("new").info, presets)) == text


def test_links_join_what_exists(workflow: dict[str, Any], host: support.Host) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) and workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    for link, origin, output, target, place, kind in workflow["links"]:
        source, sink = nodes[origin]["outputs"][output], nodes[target]["inputs"][place]
        assert link in source["links"] and sink["link"] == link
        assert source["type"] == sink["type"] == kind
        if not {nodes[origin]["type"], nodes[target]["type"]} <= host.info.keys():
            continue  # nodes that are newer than this host
        info = host.info[nodes[origin]["type"]]
        assert info["output"][output] == kind, f"{nodes[origin]['type']} gives {info['output']}"
        known = {
            **host.info[nodes[target]["type"]]["input"]["required"],
            **host.info[nodes[target]["type"]]["input"].get("optional", {}),
        }
        assert known[sink["name"]][0] == kind


def test_nothing_points_to_this_machine(workflow: dict[str, Any]) -> None:
    assert not [text for text in texts(workflow) if ELSEWHERE.search(text)]


def test_layout_is_tidy(workflow: dict[str, Any]) -> None:
    """No node covers another, each lies in a titled group, and links run from left to right."""

    def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
        (x, y), (width, height) = node["pos"], node["size"]
        return x, y - TITLE_HEIGHT, x + width, y + height

    for a, b in combinations(workflow["nodes"], 2):
        (l1, t1, r1, b1), (l2, t2, r2, b2) = box(a), box(b)
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, f"{a['type']} ({a['id']}) and {b['type']} ({b['id']}) overlap"
    for node in workflow["nodes"]:
        left, top, right, bottom = box(node)
        around = [
            group["title"]
            for group in workflow["groups"]
            for x, y, width, height in [group["bounding"]]
            if x <= left and y <= top and right <= x + width and bottom <= y + height
        ]
        assert len(around) == 1 and around[0], f"{node['type']} ({node['id']}) is in the groups {around}"
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for _, origin, _, target, _, _ in workflow["links"]:
        assert nodes[origin]["pos"][0] <= nodes[target]["pos"][0]


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if is_demo(json.loads(path.read_text(encoding="utf-8")))], ids=lambda path: path.stem
)
def test_it_runs(path: Path, host: support.Host) -> None:
    """The shipped file itself, on a random model under the demo model's name."""
    prompt = canvas.to_prompt(json.loads(path.read_text(encoding="utf-8")), host.server.object_info(), SHORT)
    graph = host.graph()
    graph.prompt = prompt
    entry = host.run(graph)
    grids = [key for key, node in prompt.items() if node["class_type"] == "EpochWeightGrid"]
    assert grids and all(host.server.pictures(entry, key) for key in grids)
