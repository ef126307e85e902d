"""Trainings that are killed with SIGKILL, twenty times in all: each ends at the very files of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_atelier.training.runs.run import Run
from safetensors import safe_open

pytestmark = pytest.mark.cpu_only("a fork has none of the threads and handles of a device that was in use before it")

KILLS, SEED = 20, 3
SCRIPT = Path(__file__).with_name("killed_runs.py")


@pytest.fixture(scope="module")
def lab(comfyui, tmp_path_factory) -> Path:
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(folder), str(SEED), str(KILLS)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def report(lab) -> dict[str, Any]:
    return json.loads((lab / "report.json").read_text())


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def assert_equal_files(one: Path, other: Path) -> None:
    (mine, said), (theirs, expected) = contents(one), contents(other)
    assert mine.keys() == theirs.keys(), one
    assert all(torch.equal(mine[key], theirs[key]) for key in mine), one
    assert said.keys() == expected.keys() and said.get("state") == expected.get("state"), one


def test_the_kills_met_the_runs_everywhere(report):
    """Else the comparison below would prove little."""
    killed = [attempt for attempt in report["attempts"] if attempt["ended"] == "killed"]
    assert len(killed) == KILLS and not [a for a in report["attempts"] if a["ended"] == "failed"]
    assert {a["way"] for a in killed} == {"at_a_random_moment", "at_the_sight_of_a_temporary_file", "within_a_write"}
    assert sum(a["temporary"] > 0 for a in killed) >= 4, "within writes"
    assert len({a["lines"] for a in killed}) >= 5, "at many steps"


def test_killed_runs_end_at_the_very_same_files(lab, report):
    assert set(report["places"].values()) == {"averaged", "adaptive"}
    for place, name in report["places"].items():
        whole, killed = (Run(name, lab / part / "runs", lab / part / "loras") for part in ("whole", place))
        assert whole.finished() and killed.finished()
        assert [(s.path.name, s.step, s.kind) for s in killed.saved()] == [(s.path.name, s.step, s.kind) for s in whole.saved()]
        assert [p.name for p in killed.lora_files()] == [p.name for p in whole.lora_files()]
        for mine, theirs in zip(killed.saved(), whole.saved(), strict=True):
            assert_equal_files(mine.path, theirs.path)
        if killed.load_state().step == 17:  # a kill after the last file leaves the state before it, which nobody needs
            assert_equal_files(killed.folder / "state" / "state.safetensors", whole.folder / "state" / "state.safetensors")
        for rows in ("history.jsonl", "measured.jsonl"):
            assert (killed.folder / rows).read_text() == (whole.folder / rows).read_text()
        drawn = [{p.name: p.read_bytes() for p in run.folder.glob("samples/*")} for run in (killed, whole)]
        assert drawn[0] == drawn[1]


def test_nothing_half_written_is_left(lab, report):
    for place in report["places"]:
        assert not list((lab / place).rglob("*.partial"))
