"""The model's name for the title, from the graph; and how prompts are read, from the LoRA files."""

from __future__ import annotations

import json

import pytest
from lora_atelier.training.config import TextConfig, TrainingConfig, to_dict
from lora_atelier.training.grid.origin import lora_names, model_name, prompt_syntax

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


def test_what_lies_on_each_of_two_models_is_told_apart():
    prompt = graph(
        n1={"inputs": {"unet_name": "z_image_turbo_bf16.safetensors"}},
        n3={"inputs": {"model": ["1", 0], "lora_name": "turbo/training_adapter_v2.safetensors", "strength_model": 1.0}},
        n4={"inputs": {"model": ["3", 0], "lora_name": "shut.safetensors", "strength_model": 0.0}},
        n5={"inputs": {"model": ["4", 0], "one": {"on": True, "lora": "a\\b.safetensors"}, "two": {"on": False, "lora": "c"}}},
        n2={"inputs": {"preview_model": ["1", 0], "model": ["5", 0]}},
    )  # fmt: skip
    assert lora_names(prompt, "2") == ("b", "training_adapter_v2") and lora_names(prompt, "2", "preview_model") == ()
    assert model_name(prompt, "2") == model_name(prompt, "2", "preview_model") == "z_image_turbo_bf16"
    assert model_name({"2": {"inputs": {"model": ["1", 0]}}, **graph(n1=LOADER)}, "2", "preview_model") == ""


def test_none_is_no_lora_and_a_loader_may_have_one_of_its_own():
    prompt = graph(
        n1={"inputs": {"unet_name": "below.safetensors", "lora_name": "beneath"}},
        n3={"inputs": {"model": ["1", 0], "ckpt_name": "x.safetensors", "lora_name": "a/own.safetensors", "strength_model": 1.0}},
        n4={"inputs": {"model": ["3", 0], "lora_name": "None", "strength_model": 1.0}},
        n5={"inputs": {"model": ["4", 0], "lora_name": "", "one": {"lora": "None"}}},
        n6={"inputs": {"ckpt_name": "y.safetensors", "lora_name": "None"}},
        n2={"inputs": {"model": ["5", 0], "preview_model": ["6", 0]}},
    )
    assert lora_names(prompt, "2") == ("own",) and lora_names(prompt, "2", "preview_model") == ()


def saying(syntax) -> dict[str, str]:
    """Metadata of a file that this pack has trained."""
    return {"lora_atelier.config": json.dumps(to_dict(TrainingConfig("a", text=TextConfig(syntax=syntax))))}


BEFORE = {"lora_atelier.config": json.dumps({"name": "a", "text": {"encoders": "none", "learning_rate": 0.0}})}
"""Of a version in which every caption went through the syntax."""


@pytest.mark.parametrize(
    ("files", "syntax"),
    [
        ([], "plain"),
        ([{}], "plain"),
        ([saying("plain")], "plain"),
        ([saying("ComfyUI"), saying("ComfyUI")], "ComfyUI"),
        ([BEFORE], "ComfyUI"),
        ([saying("ComfyUI"), saying("plain")], "plain"),
        ([saying("ComfyUI"), {"ss_output_name": "of another trainer"}], "plain"),
        ([{"lora_atelier.config": text} for text in ("", "[]", "3", "{", "null", '{"text": 3}', "[" * 10_000)], "plain"),
    ],
)
def test_prompts_are_read_as_captions_were(files, syntax):
    assert prompt_syntax(files) == syntax
