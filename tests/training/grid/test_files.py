"""LoRA files named in the widget, as runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid import files
from lora_atelier.training.runs import reader
from safetensors.torch import save_file

KNOWN = [
    "ink/ink-000001.safetensors", "ink/ink-000002.safetensors", "ink/ink.safetensors", "wash.safetensors",
    "old\\windows.safetensors", "flux-style-2024.safetensors",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wash.safetensors", [3]),
        ("wash", [3]),
        ("ink", [0, 1, 2]),
        ("ink/", [0, 1, 2]),
        ("ink/ink-*", [0, 1]),
        ("*", [0, 1, 2, 3, 4, 5]),
        ("old/windows", [4]),
        ("wash\n\n  ink/ink \nwash", [3, 2]),
        ("", []),
    ],
)
def test_lines_name_files_folders_and_patterns(text, expected):
    assert files.choose_files(text, KNOWN) == [KNOWN[i] for i in expected]


def test_a_line_that_names_nothing_is_told_with_what_is_near():
    with pytest.raises(AtelierError, match=r"lora_files: .*wahs.*did you mean wash\.safetensors"):
        files.choose_files("wahs", KNOWN)
    with pytest.raises(AtelierError, match="models/loras"):
        files.choose_files("../../etc/passwd", KNOWN)


def runs(names, facts=None):
    return files.as_runs(names, Path, lambda path: (facts or {}).get(str(path), {}))


def test_the_unnumbered_file_is_the_last_epoch():
    names = ["ink/ink.safetensors", "ink/ink-000010.safetensors", "ink/ink-000002.safetensors"]
    (run,) = runs(names)
    assert run.name == "ink" and [file.epoch for file in run.files] == [2, 10, 11]
    assert [file.path.name for file in run.files][-1] == "ink.safetensors"
    (run,) = runs(names, {"ink/ink.safetensors": {"ss_epoch": "20", "ss_steps": "400", "ss_base_model_version": "sdxl"}})
    assert [file.epoch for file in run.files] == [2, 10, 20] and run.files[-1].step == 400


def test_files_of_different_names_are_different_runs():
    found = runs(["a/x-000001.safetensors", "b/x-000001.safetensors", "y.safetensors", "flux-style-2024.safetensors"])
    assert [(run.name, [file.kind for file in run.files]) for run in found] == [
        ("x", ["epoch"]), ("x", ["epoch"]), ("y", ["last"]), ("flux-style-2024", ["last"]),
    ]  # fmt: skip


def test_saves_by_step_are_in_order_of_steps():
    (run,) = runs(["x-step00000500.safetensors", "x-step00000250.safetensors", "x.safetensors"])
    assert [(file.label, file.kind) for file in run.files][:2] == [("step 250", "step"), ("step 500", "step")]
    (run,) = runs(["y_000000500.safetensors", "y_000000250.safetensors"])
    assert [file.step for file in run.files] == [250, 500]


@given(st.lists(st.integers(1, 999_999), min_size=1, max_size=12, unique=True), st.booleans())
def test_epochs_of_a_run_rise(numbers, with_last):
    names = [f"x-{n:06d}.safetensors" for n in numbers] + (["x.safetensors"] if with_last else [])
    (run,) = runs(names)
    epochs = [file.epoch for file in run.files]
    assert epochs == sorted(set(epochs)) and len(epochs) == len(names)


def test_metadata_of_a_file_and_of_what_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"ss_epoch": "3"})
    assert files.read_metadata(path) == {"ss_epoch": "3"}
    path.write_bytes(b"nothing")
    assert files.read_metadata(path) == {} == files.read_metadata(tmp_path / "gone.safetensors")


def test_losses_are_read_as_the_run_wrote_them(tmp_path):
    from lora_atelier.training.runs.run import Run

    run = Run.begin("ink", tmp_path, tmp_path / "loras")
    run.append_measured(1, 10, 0.25, 0.5)
    run.append_measured(2, 20, None, 0.4)
    with open(run.folder / "measured.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 30})[:5])
    assert reader.measured(run.folder) == {10: (0.25, 0.5), 20: (None, 0.4)}
    assert reader.measured(tmp_path / "none") == {}
