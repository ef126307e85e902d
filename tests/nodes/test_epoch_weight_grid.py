"""EpochWeightGrid inside ComfyUI: its widgets, what it says before training, and files of any origin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_atelier.demo import workflow as canvas
from lora_atelier.tests.training.conftest import load_model
from lora_atelier.tests.training.grid.test_render import write_lora
from PIL import Image

WIDGETS = {
    "prompts": "a fox", "negative": "", "which_epochs": "all", "strengths": "0.5, 1", "sampler_name": "euler",
    "scheduler": "normal", "steps": 1, "cfg": 1.0, "width": 64, "height": 64, "seed": 7,
}  # fmt: skip


@pytest.fixture
def node(comfyui):
    from lora_atelier.nodes.epoch_weight_grid import EpochWeightGrid

    return EpochWeightGrid


@pytest.fixture
def loras(comfyui, tmp_path, monkeypatch) -> Path:
    """The host's folders, in this test's own place; the one of LoRA files."""
    import folder_paths

    for name in ("output", "loras"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    folder_paths.filename_list_cache.pop("loras", None)
    return tmp_path / "loras"


def test_new_widgets_are_behind_those_that_workflows_store_by_position(node):
    info = node.GET_NODE_INFO_V1()
    widgets = [name for name, kind, options, _ in canvas.input_specs(info) if canvas.is_widget(kind, options)]
    stored = list(WIDGETS) + [
        "more_seeds", "lora_files", "text_encoder", "text_encoder_strength", "cells_at_once", "scores", "prompt_syntax",
        "frames", "shown_frame",
    ]  # fmt: skip
    assert widgets == stored
    assert {"epochs", "dataset", "clip_vision"} <= set(info["input"]["optional"])


def test_every_widget_has_a_tooltip_and_the_help_page_names_it(node, root: Path):
    page = (root / "js" / "docs" / "EpochWeightGrid.md").read_text(encoding="utf-8")
    schema = node.GET_SCHEMA()
    assert all(len(entry.tooltip) > 10 for entry in [*schema.inputs, *schema.outputs])
    said = [entry.id for entry in schema.inputs] + [entry.display_name for entry in schema.outputs]
    assert [name for name in said if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        ({"prompts": " \n "}, "prompts"),
        ({"strengths": "strong"}, "strengths: 'strong'"),
        ({"strengths": "0-1(+0)"}, "strengths"),
        ({"which_epochs": "1.5"}, "which_epochs"),
        ({"which_epochs": "every 0"}, "which_epochs"),
        ({"which_epochs": "all, mean 3"}, "which_epochs"),
        ({"more_seeds": "x"}, "more_seeds"),
        ({"lora_files": "nowhere"}, "lora_files"),
        ({"strengths": "0-1[500]", "prompts": "a\nb\nc"}, "cells"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_runs(node, loras, widgets, words):
    values = {"prompts": "a", "strengths": "1", "which_epochs": "all", "more_seeds": "", "lora_files": ""}
    assert node.validate_inputs(**values) is True
    said = node.validate_inputs(**{**values, **widgets})
    assert isinstance(said, str) and words in said and "\n" not in said


def test_what_is_linked_cannot_be_checked_yet(node, loras):
    (loras / "ink.safetensors").write_bytes(b"")
    assert node.validate_inputs(prompts="a", lora_files="ink") is True
    assert node.validate_inputs() is True
    assert node.validate_inputs(prompts=None, strengths=None, which_epochs=None, more_seeds=None, lora_files=None) is True


def test_a_changed_file_is_drawn_anew(node, loras):
    (loras / "ink-000001.safetensors").write_bytes(b"")
    one = node.fingerprint_inputs(lora_files="ink*", prompts="a")
    assert one == node.fingerprint_inputs(lora_files="ink*", prompts="a")
    (loras / "ink-000002.safetensors").write_bytes(b"")
    assert node.fingerprint_inputs(lora_files="ink*") != one
    assert node.fingerprint_inputs(lora_files="") == node.fingerprint_inputs() != one


def test_files_of_any_origin_are_shown_with_the_unnumbered_one_last(node, loras, tmp_path):
    t = load_model("sd3")
    folder = loras / "old"
    folder.mkdir()
    for number, name in enumerate(("ink-000002", "ink-000004", "ink")):
        write_lora(t, folder / f"{name}.safetensors", seed=number)
    with torch.inference_mode():
        output = node.execute(t.model.patcher, t.text.clip, t.codec.vae, **WIDGETS, lora_files="old", more_seeds="8")
    grid, notes = output.result
    assert len(grid) == 2 and "Hint" in notes
    (page, _) = output.ui["images"]
    with Image.open(tmp_path / "output" / page["subfolder"] / page["filename"]) as picture:
        facts = json.loads(picture.text["lora_atelier.grid"])
        assert (grid.shape[2], grid.shape[1]) == picture.size
    assert [(e["file"], e["epoch"]) for e in facts["epochs"]] == [
        (str(Path("old") / f"{name}.safetensors"), epoch) for name, epoch in (("ink-000002", 2), ("ink-000004", 4), ("ink", None))
    ]  # fmt: skip
    assert [e["label"] for e in facts["epochs"]] == ["epoch 2", "epoch 4", "unnumbered"]
    assert "An unnumbered file stands last" in notes
    assert page["subfolder"] == "lora-atelier/ink/grids"
