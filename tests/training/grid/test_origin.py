"""The model's name for the title, from the graph."""

from __future__ import annotations

import pytest
from lora_atelier.training.grid.origin import model_name

LOADER = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "xl/my-base.v2.safetensors"}}


def graph(**nodes):
    return {key.removeprefix("n"): node for key, node in nodes.items()}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (graph(n1=LOADER, n2={"inputs": {"model": ["1", 0], "clip": ["1", 1]}}), "my-base.v2"),
        (
            graph(
                n1={"inputs": {"unet_name": "flux\\dev.gguf"}},
                n5={"inputs": {"model": ["1", 0], "shift": 3.0}},
                n2={"inputs": {"vae": ["9", 0], "model": ["5", 0]}},
            ),
            "dev",
        ),
        (graph(n1=LOADER, n3={"inputs": {"model1": ["1", 0]}}, n2={"inputs": {"model": ["3", 0]}}), "my-base.v2"),
        (graph(n2={"inputs": {"model": ["2", 0]}}), ""),
        (graph(n2={"inputs": {"model": ["7", 0]}}), ""),
        (graph(n2={"inputs": {}}), ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_the_loader_is_found_upstream(prompt, expected):
    assert model_name(prompt, "2") == expected
