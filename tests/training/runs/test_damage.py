"""Whatever lies in a run's folder: it goes on, begins beside it, or says in a sentence what is wrong. Nothing else comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests.fuzz import ODD_FILES, damaged, fuzzed, lines_of, mutated, written
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.run import Run
from lora_atelier.training.runs.state import State, read_state, step_of, write_state

from .test_opening import Folders

ROWS = [{"step": n, "epoch": 1, "loss": 0.5, "rate": 1e-4} for n in range(1, 5)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Folders, Path]:
    """A run of 40 steps beside a file that is none of its business."""
    folders = Folders(tmp_path_factory.mktemp("damage"))
    folders.trained(40)
    victim = folders.runs.parent / "victim.safetensors"
    victim.write_bytes(b"precious")
    return folders, victim


def opens(folders: Folders) -> None:
    """The run can be queued, looked at and trimmed, or says why not; and afterwards it is as it was."""
    try:
        with folders.open() as opened:
            assert opened.run.name in ("ink", "ink-2") and opened.why
            opened.run.keep_last(1)
            opened.run.losses()
            opened.run.load_state()
    except AtelierError as error:
        assert str(error)


@pytest.mark.parametrize("name", ["run.json", "inputs.json"])
def test_documents_that_a_run_did_not_write(trained, name):
    folders, victim = trained
    path = folders.runs / "ink" / name
    sound = path.read_bytes()
    document = json.loads(sound)

    @fuzzed(120)
    @given(st.one_of(mutated(document).flatmap(written), damaged(sound), ODD_FILES))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        opens(folders)
        assert victim.read_bytes() == b"precious"

    try:
        check()
    finally:
        path.write_bytes(sound)


def test_histories_that_a_run_did_not_write(trained):
    folders, _ = trained
    path = folders.runs / "ink" / "history.jsonl"

    @fuzzed(100)
    @given(st.one_of(st.lists(mutated(ROWS[0]), max_size=3).flatmap(lambda rows: lines_of([*ROWS, *rows])), ODD_FILES))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        run = Run("ink", folders.runs, folders.loras)
        assert all(isinstance(loss, (int, float)) for loss in run.losses())
        assert all(row["step"] <= 2 for row in run.cut_history(2))

    check()


def test_no_change_of_a_state_goes_unnoticed(tmp_path):
    """Whatever is read back is what was written, or it is an error."""
    path = tmp_path / "state.safetensors"
    adapter = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
        "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99)}],
    }
    write_state(path, State(7, adapter, optimizer, {}, {"a": torch.zeros(1)}, True), tmp_path / "before.safetensors")
    sound = path.read_bytes()

    @fuzzed(300)
    @given(damaged(sound))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        step_of(path)
        try:
            state = read_state(path)
        except AtelierError as error:
            assert "damaged" in str(error)
            return
        assert state is not None and state.step == 7 and state.due
        assert all(torch.equal(state.adapter[key], adapter[key]) for key in adapter)
        assert state.optimizer["param_groups"] == optimizer["param_groups"]
        assert torch.equal(state.optimizer["state"][0]["exp_avg"], torch.ones(2))

    check()


@fuzzed(40)
@given(ODD_FILES)
def test_a_state_that_is_none(tmp_path, data):
    path = tmp_path / "state.safetensors"
    path.write_bytes(data)
    assert step_of(path) is None
    with pytest.raises(AtelierError, match="damaged"):
        read_state(path)


def test_a_kill_between_the_two_names_of_a_state_leaves_nothing_behind(tmp_path):
    """The state has both names then, and a file that is renamed to a name of its own stays where it was."""
    path, before = tmp_path / "state.safetensors", tmp_path / "before.safetensors"
    empty = {"state": {}, "param_groups": []}

    def write(step: int) -> None:
        write_state(path, State(step, {"a": torch.ones(1)}, empty, {}, {}, False), before)

    write(1)
    os.link(path, before)
    write(2)
    assert sorted(tmp_path.iterdir()) == [before, path]
    assert read_state(path).step == 2 and read_state(before).step == 1
