"""What a new user gets wrong, tried on a real server: each mistake is told in words on the right node, and nothing is trained."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from lora_atelier.tests.host import support


def attempt(host: support.Host, folder: str = "input/shapes", **changes: dict[str, Any]) -> support.Failure:
    loras = host.loras / "lora-atelier" / "mistake"
    shutil.rmtree(loras, ignore_errors=True)  # another test's failure must not become this one's
    graph = host.graph()
    changes.setdefault("LoadDataset", {}).setdefault("folder", folder)
    support.build_atelier(graph, "sd3", "mistake", **changes)
    failure = host.fail(graph)
    assert not loras.exists(), "nothing may be saved by a failed graph"
    return failure


def test_empty_folder(host: support.Host) -> None:
    (host.base / "input" / "nothing-here").mkdir(exist_ok=True)
    failure = attempt(host, "input/nothing-here")
    assert failure.node == "LoadDataset"
    assert "nothing-here" in failure.message and "picture" in failure.message


def test_broken_picture(host: support.Host) -> None:
    folder = support.draw_dataset(host.base / "input" / "broken")
    (folder / "torn.png").write_bytes((folder / "red square.png").read_bytes()[:200])
    failure = attempt(host, "input/broken")
    assert failure.node == "LoadDataset"
    assert "torn.png" in failure.message


def test_no_captions(host: support.Host) -> None:
    """Load Dataset wired straight into Train LoRA."""
    support.draw_dataset(host.base / "input" / "silent")
    graph = host.graph()
    nodes = support.build_atelier(graph, "sd3", "mistake", LoadDataset={"folder": "input/silent"})
    graph.prompt[nodes.train]["inputs"]["dataset"] = graph.out(nodes.dataset)
    del graph.prompt[nodes.caption]
    failure = host.fail(graph)
    assert failure.node == "TrainLoRA"
    assert "caption" in failure.message and "Auto Caption" in failure.message


@pytest.mark.parametrize("missing", ["model", "clip", "vae", "dataset", "config"])
def test_input_that_is_not_wired(host: support.Host, missing: str) -> None:
    failure = attempt(host, TrainLoRA={missing: ...})
    assert failure.node == "TrainLoRA"
    assert missing in failure.message


@pytest.mark.parametrize(
    ("kind", "wire", "words"),
    [
        ("TrainLoRA", "vae", "vae: its latent has 4 channels, and this SD3 model works on one with 16"),
        ("TrainLoRA", "clip", "clip: the text is encoded in vectors of 768 numbers, and this SD3 model reads vectors of 4096"),
        ("EpochWeightGrid", "vae", "vae: its latent has 4 channels"),
        ("EpochWeightGrid", "clip", "clip: the text is encoded in vectors of 768 numbers"),
    ],
)
def test_partner_of_another_model(host: support.Host, kind: str, wire: str, words: str) -> None:
    """One wire of the node comes from another checkpoint."""
    graph = host.graph()
    nodes = support.build_atelier(graph, "sd3", "partner", EpochWeightGrid={"prompts": "a green hill"})
    links = dict(zip(("model", "clip", "vae"), support.load_checkpoint(graph, "sd15"), strict=True))
    node = nodes.train if kind == "TrainLoRA" else nodes.grid
    graph.prompt[node]["inputs"][wire] = links[wire]
    failure = host.fail(graph)
    assert failure.node == kind
    assert words in failure.message and failure.message.count("Connect the") == 1


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"name": "../escape"}, "file name"),
        ({"name": ""}, "name"),
        ({"rank": 0}, "rank"),
        ({"learning_rate": 0.0}, "learning"),
    ],
)
def test_setting_that_cannot_work(host: support.Host, widgets: dict[str, Any], words: str) -> None:
    failure = attempt(host, ConfigureLoRA=widgets)
    assert failure.node == "ConfigureLoRA"
    assert words in failure.message
    assert failure.times == 1, "one sentence is enough"
    assert not list(host.base.rglob("*escape*"))


@pytest.mark.parametrize("folder", ["input/../../etc", "/etc", "input/no-such-folder"])
def test_folder_outside_the_allowed_ones(host: support.Host, folder: str) -> None:
    failure = attempt(host, folder)
    assert failure.node == "LoadDataset"
    assert folder in failure.message


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        ({"prompts": "  \n "}, "prompts: write"),
        ({"strengths": "strong"}, "strengths: 'strong'"),
        ({"which_epochs": "every"}, "which_epochs: 'every'"),
        ({"which_epochs": "7"}, "which_epochs: none of '7' was saved"),
    ],
)
def test_grid_setting_that_cannot_work(host: support.Host, widgets: dict[str, Any], words: str) -> None:
    """Told when the graph is queued, but for epochs that turn out not to have been saved; the training ends well all the same."""
    graph = host.graph()
    nodes = support.build_atelier(graph, "sd3", "grid-mistake", EpochWeightGrid=widgets)
    failure = host.fail(graph)
    assert graph.prompt[nodes.grid]["class_type"] == failure.node
    assert words in failure.message
    assert failure.times == 1, "however many widgets were looked at"
    at_once = "none of" not in words
    assert failure.message.startswith("Custom validation failed") == at_once


def test_a_captioner_that_is_not_there_is_one_error(host: support.Host) -> None:
    failure = attempt(host, AutoCaption={"captioner": "blip-nowhere", "download": False})
    assert failure.node == "AutoCaption"
    assert failure.message.startswith("Custom validation failed")
    assert "captioner: 'blip-nowhere' is not in" in failure.message and failure.times == 1
