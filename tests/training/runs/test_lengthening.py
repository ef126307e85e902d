"""Finished and interrupted runs that go on in earnest: longer, with mended captions, after damage, after files were deleted."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, TextConfig
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.run import SAVED_LORAS, Run
from safetensors import safe_open
from safetensors.torch import load_file

from ..test_job import Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401

STEADY = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=2)


def steps(number: int, **more) -> LengthConfig:
    return LengthConfig(max_steps=number, **more)


def cancelled(t, pictures, config, patch, error, at: int) -> None:
    """The run of ``config``, cancelled at its ``at``-th look for that."""
    with patch.context() as one:
        only_training_checks(one)
        Stop(one, at, error)
        with pytest.raises(type(error)):
            go(t, pictures, config)


def run_of(name: str) -> Run:
    return Run(name, host.runs_folder(), host.loras_folder())


def test_a_finished_run_that_becomes_longer_ends_as_if_it_had_been_so_long(tiny, dataset):  # noqa: F811
    """Averages, dropout and validation included; its former end stays as an epoch of its own."""
    t = tiny("sd3")
    settings = {"optimizer": STEADY, "ema_decay": 0.9, "network": NetworkConfig(rank=4, targets="attention", dropout=0.2)}
    whole = go(t, dataset, recipe("whole", length=steps(9), **settings))
    short = go(t, dataset, recipe("pieces", length=steps(6), **settings))
    kept = load_file(short.epochs.files[-1].path)
    said: list[str] = []
    longer = go(t, dataset, recipe("pieces", length=steps(9), **settings), show=said.append)
    assert said[1] == "pieces: goes on from step 6 of 9 (it was to have 6)"
    assert longer.losses == whole.losses
    assert all(torch.equal(longer.tensors[key], whole.tensors[key]) for key in whole.tensors)
    assert [(f.step, f.kind, f.path.name) for f in longer.epochs.files] == [
        (3, "epoch", "pieces-000001.safetensors"), (6, "epoch", "pieces-000002.safetensors"), (9, "last", "pieces.safetensors"),
    ]  # fmt: skip
    again = load_file(longer.epochs.files[1].path)
    assert all(torch.equal(again[key], kept[key]) for key in kept)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": OptimizerConfig("Prodigy", learning_rate=1.0, schedule="constant", accumulate=3), "ema_decay": 0.5},
        {"optimizer": OptimizerConfig("Adafactor", learning_rate=1e-2, schedule="constant")},
        {"optimizer": STEADY, "text": TextConfig("clip", learning_rate=1e-3)},
        {"optimizer": STEADY, "precision": "fp16"},
        {"optimizer": OptimizerConfig(learning_rate=1e-2, schedule="annealing", cycle_steps=4, min_share=0.1)},
    ],
    ids=["Prodigy", "Adafactor", "text encoder", "fp16", "annealing"],
)
def test_a_run_can_become_longer_twice(tiny, dataset, settings):  # noqa: F811
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole", length=steps(12), **settings))
    for total in (6, 9, 12):
        longer = go(t, dataset, recipe("pieces", length=steps(total), **settings))
    assert longer.epochs.name == "pieces" and longer.losses == whole.losses
    assert all(torch.equal(longer.tensors[key], whole.tensors[key]) for key in whole.tensors)
    assert [file.label for file in longer.epochs.files] == [file.label for file in whole.epochs.files]


def test_settings_that_the_messages_advise_let_an_interrupted_run_go_on(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole", optimizer=STEADY))
    cancelled(t, dataset, recipe("pieces", optimizer=STEADY), monkeypatch, interrupt, 5)
    changed = recipe("pieces", optimizer=STEADY, gradient_checkpointing=True, length=LengthConfig(epochs=3, save_every=2))
    said: list[str] = []
    pieces = go(t, dataset, changed, show=said.append)
    assert said[1] == "pieces: goes on from step 4 of 9" and pieces.losses == whole.losses
    assert all(torch.equal(whole.tensors[key], pieces.tensors[key]) for key in whole.tensors)
    assert Run("pieces", host.runs_folder(), host.loras_folder()).record().opening == said[1]


def test_a_mended_caption_is_named_and_goes_on_where_that_is_wanted(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    t = tiny("sd3")
    cancelled(t, dataset, recipe("pieces", optimizer=STEADY), monkeypatch, interrupt, 5)
    (subset,) = dataset.subsets
    first = subset.samples[0]
    # Said by the picture itself, since the caption file of the fixture's folder serves other tests.
    config = dataclasses.replace(subset.config, caption_prefix="")
    mended = dataclasses.replace(first, path=first.path, mask_key="another")
    changed = Dataset((dataclasses.replace(subset, config=config, samples=(mended, *subset.samples[1:])),))
    with pytest.raises(AtelierError, match=f"since pieces was trained up to step 4: .*{first.path.name}.*'continue with the"):
        go(t, changed, recipe("pieces", optimizer=STEADY))
    assert not (host.runs_folder() / "pieces-2").exists(), "nothing begins without a word"
    done = go(t, changed, recipe("pieces", optimizer=STEADY), when="continue with the changes")
    assert done.epochs.name == "pieces" and len(done.losses) == 9
    with safe_open(done.epochs.files[-1].path, "pt") as file:
        (note,) = json.loads(file.metadata()["lora_atelier.changes"])
    assert note["step"] == 4 and first.path.name in note["changed"], "what the file is made of is said in it"
    again = go(t, changed, recipe("pieces", optimizer=STEADY))
    assert again.epochs == done.epochs, "what it was asked once is not asked again"


def test_a_rate_that_is_changed_on_the_way_is_used(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    t = tiny("sd3")
    cancelled(t, dataset, recipe("pieces", optimizer=STEADY), monkeypatch, interrupt, 5)
    slower = dataclasses.replace(STEADY, learning_rate=1e-3)
    go(t, dataset, recipe("pieces", optimizer=slower), when="continue with the changes")
    rows = [json.loads(line) for line in (host.runs_folder() / "pieces" / "history.jsonl").read_text().splitlines()]
    assert [row["rate"] for row in rows] == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2] + [1e-3] * 5)
    state = run_of("pieces").load_state()
    assert state.optimizer["param_groups"][0]["lr"] == pytest.approx(1e-3)


def flip(path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0.0, 0.05, 0.5, 0.999])
def test_a_state_with_flipped_bytes_is_noticed_and_the_one_before_goes_on(tiny, dataset, monkeypatch, interrupt, at):  # noqa: F811
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole", optimizer=STEADY))
    cancelled(t, dataset, recipe("pieces", optimizer=STEADY), monkeypatch, interrupt, 9)
    flip(host.runs_folder() / "pieces" / "state" / "state.safetensors", at)
    said: list[str] = []
    pieces = go(t, dataset, recipe("pieces", optimizer=STEADY), show=said.append)
    assert any("damaged" in line and "the state before, of step 6" in line for line in said)
    assert pieces.losses == whole.losses
    assert all(torch.equal(whole.tensors[key], pieces.tensors[key]) for key in whole.tensors)


def test_two_damaged_states_are_an_error_that_says_what_to_do(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    t = tiny("sd3")
    cancelled(t, dataset, recipe("pieces", optimizer=STEADY), monkeypatch, interrupt, 9)
    for name in ("state", "before"):
        flip(host.runs_folder() / "pieces" / "state" / f"{name}.safetensors", 0.6)
    with pytest.raises(AtelierError, match=r"state\.safetensors: the saved state is damaged.*'start over'"):
        go(t, dataset, recipe("pieces", optimizer=STEADY))


def test_deleted_and_damaged_loras_come_back_from_the_state(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    done = go(t, dataset, recipe("ink", optimizer=STEADY))
    last, before = done.epochs.files[-1].path, SAVED_LORAS.losses()
    last.unlink()
    assert SAVED_LORAS.losses() == before + 1, "so that ComfyUI's cache does not say that all is well"
    again = go(t, dataset, recipe("ink", optimizer=STEADY))
    assert all(torch.equal(done.tensors[key], again.tensors[key]) for key in done.tensors) and SAVED_LORAS.losses() == before + 1
    flip(last, 0.9)
    said: list[str] = []
    third = go(t, dataset, recipe("ink", optimizer=STEADY), show=said.append)
    assert "ink.safetensors was damaged and set aside" in said[1] and last.with_name("ink.safetensors.damaged").is_file()
    assert all(torch.equal(done.tensors[key], third.tensors[key]) for key in done.tensors)


def test_a_run_of_which_everything_was_deleted_begins_again(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    done = go(t, dataset, recipe("ink", optimizer=STEADY))
    shutil.rmtree(host.runs_folder() / "ink")
    shutil.rmtree(host.loras_folder() / "ink")
    again = go(t, dataset, recipe("ink", optimizer=STEADY))
    assert again.losses == done.losses and again.epochs.name == "ink"


def test_a_foreign_record_deletes_nothing_outside(tiny, dataset, tmp_path):  # noqa: F811
    """``keep_last`` goes by run.json, which may be anybody's."""
    t = tiny("sd3")
    victim = host.loras_folder().parent / "victim.safetensors"
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_bytes(b"precious")
    go(t, dataset, recipe("ink", optimizer=STEADY, length=LengthConfig(epochs=3)))
    path = host.runs_folder() / "ink" / "run.json"
    record = json.loads(path.read_text())
    for name in ("../../victim.safetensors", str(victim), "..\\..\\victim.safetensors"):
        record["saved"][0]["file"] = name
        path.write_text(json.dumps(record))
        with pytest.raises(AtelierError, match="'file' in it is not what a run writes"):
            run_of("ink").keep_last(1)
    done = go(t, dataset, recipe("ink", optimizer=STEADY, length=LengthConfig(epochs=3, keep_last=1)))
    assert done.epochs.name == "ink-2" and victim.read_bytes() == b"precious"


def test_an_end_within_an_epoch_is_a_step_of_the_longer_run(tiny, dataset):  # noqa: F811
    """No two columns of a grid are called epoch 2."""
    t = tiny("sd3")
    go(t, dataset, recipe("ink", optimizer=STEADY, length=steps(5)))
    for total in (7, 9):
        longer = go(t, dataset, recipe("ink", optimizer=STEADY, length=steps(total)))
    labels = [(file.label, file.step, file.kind) for file in longer.epochs.files]
    assert labels == [
        ("epoch 1", 3, "epoch"), ("step 5", 5, "step"), ("epoch 2", 6, "epoch"), ("step 7", 7, "step"), ("epoch 3", 9, "last"),
    ]  # fmt: skip
    whole = go(t, dataset, recipe("whole", optimizer=STEADY, length=steps(9)))
    assert longer.losses == whole.losses and all(torch.equal(longer.tensors[k], whole.tensors[k]) for k in whole.tensors)


def test_a_run_that_begins_again_keeps_no_note_of_changes_that_are_not_in_it(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    go(t, dataset, recipe("ink", optimizer=STEADY, length=steps(3)))
    faster = recipe("ink", optimizer=dataclasses.replace(STEADY, learning_rate=2e-2), length=steps(6))
    go(t, dataset, faster, when="continue with the changes")
    assert run_of("ink").record().changes
    shutil.rmtree(host.loras_folder() / "ink")
    shutil.rmtree(host.runs_folder() / "ink" / "state")
    run_of("ink").write(saved=[])
    said: list[str] = []
    again = go(t, dataset, faster, show=said.append)
    assert said[1] == "ink: begins again, since no state of it was kept"
    with safe_open(again.epochs.files[-1].path, "pt") as file:
        assert "lora_atelier.changes" not in file.metadata()
    assert run_of("ink").record().changes == () and len(again.losses) == 6


def test_a_finished_run_says_what_it_does_not_do_any_more(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    go(t, dataset, recipe("ink", optimizer=STEADY))
    said: list[str] = []
    changed = recipe("ink", optimizer=STEADY, save_precision="bf16", length=LengthConfig(epochs=3, save_every=2))
    go(t, dataset, changed, show=said.append)
    assert said[1] == (
        "ink: is finished and handed on as it is; save_precision, save_every would have counted while it was trained, so its "
        "files stay as they were saved"
    )


@pytest.mark.parametrize("damage", [b"", b"\x00[", None])
def test_losses_that_are_gone_are_told(tiny, dataset, damage):  # noqa: F811
    t = tiny("sd3")
    go(t, dataset, recipe("ink", optimizer=STEADY))
    path = host.runs_folder() / "ink" / "history.jsonl"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    said: list[str] = []
    go(t, dataset, recipe("ink", optimizer=STEADY), show=said.append)
    assert said[1] == "ink: is finished and handed on as it is; the losses of 9 of its steps are gone from its history"
    go(t, dataset, recipe("ink", optimizer=STEADY, length=LengthConfig(epochs=4)), show=said.append)
    assert "history: the losses of 9 of the first 9 steps are gone; what was learnt in them is not" in said
