"""How the pack presents itself to a server."""

from __future__ import annotations

import re

import pytest
from lora_atelier.tests.host import support


def test_import_is_quiet_and_the_server_counts_the_pack(host: support.Host) -> None:
    log = host.server.log().split("To see the GUI")[0]
    trouble = re.compile(r"IMPORT FAILED|Traceback|lora-atelier.*(error|warning)", re.I)
    assert not [line for line in log.splitlines() if trouble.search(line)]
    assert re.search(r"seconds: .*custom_nodes.lora-atelier", log), "the server's table of import times must list the pack"


@pytest.mark.parametrize("node", support.NODES)
def test_node_is_listed_with_category_and_help(host: support.Host, node: str) -> None:
    info = host.info[node]
    assert info["category"] == "LoRA Atelier"
    assert info["display_name"] and info["description"]
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    without = [name for name, spec in inputs.items() if len(spec) < 2 or not spec[1].get("tooltip")]
    assert not without, f"inputs without a tooltip: {without}"
    assert all(info["output_tooltips"]), "outputs without a tooltip"
    assert len(info["output_tooltips"]) == len(info["output"])


def test_display_names_are_plain_words(host: support.Host) -> None:
    names = [host.info[node]["display_name"] for node in support.NODES]
    assert names == [
        "Load Dataset", "Dataset From Nodes", "Auto Caption", "Render Regularisation", "Slider Dataset", "Configure LoRA",
        "Train LoRA (Atelier)", "Epoch Weight Grid",
    ]  # fmt: skip


def test_no_node_of_the_host_has_the_same_name_and_the_usual_words_find_ours(host: support.Host) -> None:
    others = {info["display_name"] for node, info in host.info.items() if node not in support.NODES}
    assert "Train LoRA" in others and not others & {host.info[node]["display_name"] for node in support.NODES}
    if "search_aliases" in host.info["TrainLoRA"]:  # older hosts search names alone
        assert all(host.info[node]["search_aliases"] for node in support.NODES)
        assert "lora trainer" in host.info["TrainLoRA"]["search_aliases"]


def test_custom_wires_fit_the_stock_nodes(host: support.Host) -> None:
    outputs = dict(zip(host.info["TrainLoRA"]["output_name"], host.info["TrainLoRA"]["output"], strict=True))
    assert outputs["lora"] == host.info["LoraModelLoader"]["input"]["required"]["lora"][0]
    assert outputs["loss"] == host.info["LossGraphNode"]["input"]["required"]["loss"][0]
    assert (outputs["model"], outputs["clip"]) == ("MODEL", "CLIP")


def test_the_panels_questions_are_answered(host: support.Host) -> None:
    assert "runs" in host.server.get("/api/lora_atelier/runs")
    ahead = host.server.post("/api/lora_atelier/outlook", {"widgets": {"max_steps": 10}})
    assert ahead["total"] == 10 and ahead["points"][0] == [0, pytest.approx(1e-4)]
    found = host.server.post("/api/lora_atelier/family", {"widget": "ckpt_name", "file": support.CHECKPOINTS["sd3"]})
    assert (found["family"], found["preset"]) == ("SD3", "SD 3.5 medium")


def test_the_panels_words_are_served(host: support.Host) -> None:
    words = host.server.get("/api/i18n")["en"]
    assert words["loraAtelier"]["stop"] and words["nodeDefs"]["TrainLoRA"]["display_name"] == "Train LoRA (Atelier)"
