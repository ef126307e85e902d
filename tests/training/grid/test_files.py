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
from lora_atelier.training.grid.axes import parse_epochs
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
        ("ink", [2, 0, 1]),
        ("ink/", [2, 0, 1]),
        ("ink/ink-*", [0, 1]),
        ("*", [5, 2, 0, 1, 4, 3]),
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


def labels(run):
    return [file.label for file in run.files]


def test_the_unnumbered_file_is_the_last_one_and_has_no_epoch_but_what_it_says():
    names = ["ink/ink.safetensors", "ink/ink-000010.safetensors", "ink/ink-000002.safetensors"]
    (run,) = runs(names)
    assert run.name == "ink" and labels(run) == ["epoch 2", "epoch 10", "unnumbered"]
    assert [file.path.name for file in run.files][-1] == "ink.safetensors" and run.files[-1].epoch == 0
    (run,) = runs(names, {"ink/ink.safetensors": {"ss_epoch": "20", "ss_steps": "400", "ss_base_model_version": "sdxl"}})
    assert [file.epoch for file in run.files] == [2, 10, 20] and run.files[-1].step == 400
    assert labels(run) == ["epoch 2", "epoch 10", "epoch 20"] and run.base == "sdxl"


def test_files_of_different_names_are_different_runs():
    found = runs(["a/x-000001.safetensors", "b/x-000001.safetensors", "y.safetensors", "flux-style-2024.safetensors"])
    assert [(run.name, [file.kind for file in run.files]) for run in found] == [
        ("x (a)", ["epoch"]), ("x (b)", ["epoch"]), ("y", ["last"]), ("flux-style-2024", ["last"]),
    ]  # fmt: skip


def training_info(step, epoch=0):
    return {"training_info": json.dumps({"step": step, "epoch": epoch}), "ss_base_model_version": "flux1"}


SERIES = {
    "PEFT, by folder": (
        [f"p/checkpoint-{n}/adapter_model.safetensors" for n in (1, 10, 2)], {},
        "p", ["checkpoint-1", "checkpoint-2", "checkpoint-10"],
    ),
    "PEFT without a folder above": (
        [f"checkpoint-{n}/adapter_model.safetensors" for n in (500, 1000)], {},
        "checkpoint", ["checkpoint-500", "checkpoint-1000"],
    ),
    "diffusers and SimpleTuner, the last one in the folder above": (
        ["d/pytorch_lora_weights.safetensors", *(f"d/checkpoint-{n}/pytorch_lora_weights.safetensors" for n in (1000, 500))], {},
        "d", ["checkpoint-500", "checkpoint-1000", "unnumbered"],
    ),
    "diffusion-pipe": (
        [f"t/epoch{n}/adapter_model.safetensors" for n in (1, 10, 2)], {}, "t", ["epoch1", "epoch2", "epoch10"],
    ),
    "ai-toolkit": (
        [f"a/a{end}.safetensors" for end in ("", "_000000250", "_000001500")],
        {"a/a.safetensors": training_info(2000, 8), "a/a_000000250.safetensors": training_info(250, 1),
         "a/a_000001500.safetensors": training_info(1500, 6)},
        "a", ["step 250", "step 1500", "step 2000"],
    ),
    "ai-toolkit, its last file that says nothing": (
        [f"a{end}.safetensors" for end in ("", "_000000250", "_000001500")], {}, "a", ["step 250", "step 1500", "unnumbered"],
    ),
    "kohya, by epoch": (
        [f"k{end}.safetensors" for end in ("", "-000004", "-000010", "-000002")],
        {"k.safetensors": {"ss_epoch": "12", "ss_steps": "1200"}}, "k", ["epoch 2", "epoch 4", "epoch 10", "epoch 12"],
    ),
    "kohya, by step": (
        [f"k{end}.safetensors" for end in ("-step00001000", "-step00000500", "")],
        {"k.safetensors": {"ss_epoch": "3", "ss_steps": "1200"}}, "k", ["step 500", "step 1000", "epoch 3"],
    ),
    "kohya, one file renamed": (
        ["k-000004.safetensors", "k-000005.safetensors"], {"k-000005.safetensors": {"ss_epoch": "3"}},
        "k", ["epoch 3", "epoch 4"],
    ),
    "OneTrainer": (
        [f"o/ink-2024-05-0{d}_10-11-12-save-{n}-{e}-0.safetensors" for d, n, e in ((3, 1000, 8), (2, 500, 4))], {},
        "ink", ["step 500", "step 1000"],
    ),
    "OneTrainer without a name": (
        [f"o/2024-05-0{d}_10-11-12-save-{n}-{e}-100.safetensors" for d, n, e in ((2, 500, 4), (3, 1000, 8))], {},
        "o", ["step 500", "step 1000"],
    ),
    "numbers of which nobody says what they count": (
        [f"x_{n}.safetensors" for n in (1, 10, 2)], {}, "x", ["1", "2", "10"],
    ),
    "the same with metadata": (
        [f"x_{n}.safetensors" for n in (1, 10, 2)],
        {f"x_{n}.safetensors": {"ss_epoch": str(n)} for n in (1, 10, 2)}, "x", ["epoch 1", "epoch 2", "epoch 10"],
    ),
    "epochs and steps in one name": (
        [f"x-epoch{e}-step{s}.safetensors" for e, s in ((1, 90), (10, 900), (2, 180))], {},
        "x", ["step 90", "step 180", "step 900"],
    ),
    "DiffSynth, whose epochs begin at 0": (
        [f"x/epoch-{n}.safetensors" for n in (1, 10, 0, 2)], {}, "x", ["epoch-0", "epoch-1", "epoch-2", "epoch-10"],
    ),
    "DiffSynth, by step": ([f"x/step-{n}.safetensors" for n in (1000, 500)], {}, "x", ["step-500", "step-1000"]),
    "finetrainers": (
        [f"f/lora_weights/{n:06d}/pytorch_lora_weights.safetensors" for n in (10000, 500)], {},
        "lora_weights", ["000500", "010000"],
    ),
    "PEFT, an adapter with a folder of its own": (
        [f"p/checkpoint-{n}/default/adapter_model.safetensors" for n in (10, 5)], {},
        "default", ["checkpoint-5", "checkpoint-10"],
    ),
    "numbers from 0": ([f"x_{n}.safetensors" for n in (1, 0)], {}, "x", ["0", "1"]),
    "files that another tool has converted": (
        [f"m-{n:06d}_comfy.safetensors" for n in (10, 2)], {}, "m_comfy", ["epoch 2", "epoch 10"],
    ),
    "ai-toolkit, half of a model": (
        [f"a_{n:09d}_high_noise.safetensors" for n in (1500, 250)], {}, "a_high_noise", ["step 250", "step 1500"],
    ),
    "this pack's own, several batches a step": (
        ["w-step00000200.safetensors", "w-000001.safetensors"],
        {"w-step00000200.safetensors": {"lora_atelier.step": "200", "ss_steps": "50", "ss_epoch": "2"},
         "w-000001.safetensors": {"lora_atelier.step": "120", "ss_steps": "30", "ss_epoch": "1"}},
        "w", ["epoch 1", "step 200"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SERIES)
def test_every_trainers_files_have_their_names_and_order(case):
    names, facts, title, expected = SERIES[case]
    (run,) = runs(names, facts)
    assert run.name == title and labels(run) == expected
    (backwards,) = runs(names[::-1], facts)
    assert [file.path for file in backwards.files] == [file.path for file in run.files]


def test_halves_and_averages_are_series_of_their_own():
    ends = ("", "ema/")
    found = runs([f"s/checkpoint-{n}/{end}pytorch_lora_weights.safetensors" for n in (5, 10) for end in ends])
    assert [(run.name, labels(run)) for run in found] == [(n, ["checkpoint-5", "checkpoint-10"]) for n in ("s", "ema")]
    found = runs([f"a_{n:09d}_{half}_noise.safetensors" for n in (5, 10) for half in ("high", "low")])
    assert [(run.name, labels(run)) for run in found] == [(f"a_{n}_noise", ["step 5", "step 10"]) for n in ("high", "low")]


def test_columns_are_asked_for_by_their_numbers():
    by_step = {f"k-step{n:08d}.safetensors": {"ss_epoch": str(n // 500), "ss_steps": str(n)} for n in (500, 1000)}
    for names, facts in (
        (list(by_step), by_step), (["x_500.safetensors", "x_1000.safetensors"], {}),
        (["o/ink2024-05-02_10-11-12-save-500-4-0.safetensors", "o/ink2024-05-02_11-11-12-save-1000-8-0.safetensors"], {}),
    ):  # fmt: skip
        (run,) = runs(names, facts)
        assert [parse_epochs(text).of(run.files) for text in ("500", "1000", "7")] == [[run.files[0]], [run.files[1]], []]
    (run,) = runs(["x/epoch-0.safetensors", "x/epoch-1.safetensors", "x.safetensors"])[:1]
    assert parse_epochs("0").of(run.files) == [run.files[0]]


def test_a_number_is_a_count_only_where_something_says_so():
    (run,) = runs(["a/adapter_model.safetensors"])
    assert run.name == "a" and run.files[0].epoch == run.files[0].step == 0
    found = runs([f"style-v{n}.safetensors" for n in (1, 2)] + ["sd-1-5.safetensors"])
    assert [run.name for run in found] == ["style-v1", "style-v2", "sd-1-5"]
    (run,) = runs(["a.safetensors"], {"a.safetensors": {"training_info": "[" * 5000, "ss_steps": "many", "ss_epoch": "-3"}})
    assert (run.files[0].epoch, run.files[0].step) == (0, 0)


def test_files_of_one_name_are_ordered_as_people_count():
    known = [f"style-v{n}.safetensors" for n in (1, 10, 2)]
    assert files.choose_files("style*", known) == [known[0], known[2], known[1]]


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
    assert epochs == sorted(numbers) + [0] * with_last and len(set(labels(run))) == len(names)


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
