"""A sweep on a real server: one recipe trained with several ranks, and one grid over what came of them."""

from __future__ import annotations

import json

from lora_atelier.tests.host import support
from PIL import Image
from safetensors import safe_open


def test_each_training_has_its_own_files_and_the_grid_shows_them_all(host: support.Host) -> None:
    graph = host.graph()
    nodes = support.build_atelier(
        graph, "sd3", "swept", ConfigureLoRA={"epochs": 1, "alpha": 0.0, "sweep": "rank: 1, 3"},
        TrainLoRA={"preview_steps": 0}, EpochWeightGrid={"which_epochs": "last", "prompts": "a red square", "strengths": "1"},
    )  # fmt: skip
    entry = host.run(graph)
    ranks = {}
    for path in (host.loras / "lora-atelier").glob("swept*/*.safetensors"):
        with safe_open(path, "pt") as opened:
            ranks[path.name] = opened.metadata()["ss_network_dim"]
    assert ranks == {"swept rank 1.safetensors": "1", "swept rank 3.safetensors": "3"}
    (page,) = host.server.pictures(entry, nodes.grid)
    facts = json.loads(Image.open(page).info["lora_atelier.grid"])
    assert [(one["label"], one["file"].rsplit("/", 1)[1]) for one in facts["epochs"]] == [
        ("rank 1", "swept rank 1.safetensors"), ("rank 3", "swept rank 3.safetensors"),
    ]  # fmt: skip
    assert len(facts["cells"]) == 3, "one without a LoRA, and one of each"
    again = host.run(graph)
    assert [path.name for path in host.server.pictures(again, nodes.grid)] == [page.name]


def test_a_sweep_that_cannot_be_read_is_refused_once_before_anything_runs(host: support.Host) -> None:
    graph = host.graph()
    support.build_atelier(graph, "sd3", "unread", ConfigureLoRA={"sweep": "rank 1, 3"})
    failure = host.fail(graph)
    assert failure.node == "ConfigureLoRA" and "'rank 1, 3' names no widget" in failure.message and failure.times == 1


def test_several_values_where_a_grid_takes_one_are_refused(host: support.Host) -> None:
    """Train LoRA's own models, one a training, in place of the one without a LoRA."""
    graph = host.graph()
    nodes = support.build_atelier(
        graph, "sd3", "swept", ConfigureLoRA={"epochs": 1, "alpha": 0.0, "sweep": "rank: 1, 3"}, TrainLoRA={"preview_steps": 0},
        EpochWeightGrid={"which_epochs": "last", "prompts": "a red square", "strengths": "1"},
    )  # fmt: skip
    graph.prompt[nodes.grid]["inputs"]["model"] = graph.out(nodes.train, 3)
    assert "model: 2 values came through the wire" in host.fail(graph).message
