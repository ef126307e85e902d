"""What a run says of itself, and keeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.training import host, job
from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.estimate import cautions, preflight
from lora_atelier.training.job.telling import status_line
from lora_atelier.training.performance.memory import kept_bytes
from lora_atelier.training.recorder import Progress
from lora_atelier.training.runs import account, reader
from lora_atelier.training.runs.layout import RUN_FILE, STATE_FILE
from lora_atelier.training.runs.run import Run

from ..test_job import dataset, fresh_folders, go, recipe  # noqa: F401


def test_settings_are_those_that_matter_and_those_that_were_changed() -> None:
    plain = account.settings_of(TrainingConfig("a"))
    assert {"rank: 16", "optimizer: AdamW", "learning_rate: 0.0001", "text_encoder: none"} <= set(plain)
    config = TrainingConfig(
        "a", network=NetworkConfig(rank=8, include="blocks.1 *\nblocks.2"), optimizer=OptimizerConfig(warmup_steps=5),
        length=LengthConfig(max_steps=50), gradient_checkpointing=True,
    )  # fmt: skip
    new = set(account.settings_of(config)) - set(plain)
    assert new == {"rank: 8", "include: blocks.1 * blocks.2", "warmup_steps: 5", "max_steps: 50", "gradient_checkpointing: on"}


def test_sentences_are_kept_once_and_read_again(tmp_path: Path) -> None:
    run = Run.begin("ink", tmp_path / "runs", tmp_path / "loras")
    told = account.Account(run, ["rank: 4"])
    told.add("warnings", "one", "two", "one")
    told.add("warnings", "two")
    told.add("counts", *(str(i) for i in range(2 * account.MOST)))
    state = reader.state("ink", tmp_path / "runs")["account"]
    assert state["settings"] == ["rank: 4"] and state["warnings"] == ["one", "two"] and len(state["counts"]) == account.MOST
    account.Account(run)
    assert reader.state("ink", tmp_path / "runs")["account"]["warnings"] == [], "a run that goes on begins a new one"


@pytest.mark.parametrize("damage", [[], "x", {"warnings": "x"}, {"warnings": [1]}, {"else": None}])
def test_a_damaged_account_is_named(tmp_path: Path, damage: Any) -> None:
    run = Run.begin("ink", tmp_path / "runs", tmp_path / "loras")
    path = run.folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "account": damage}))
    with pytest.raises(AtelierError, match="'account' in it is not what a run writes"):
        reader.state("ink", tmp_path / "runs")


def test_a_run_tells_what_to_expect_and_the_next_one_what_that_rests_on(tiny, dataset, monkeypatch) -> None:  # noqa: F811
    """The second has a name of its own and the first one's pace, and times nothing."""
    t = tiny("sd15")
    go(t, dataset, recipe("ext", length=LengthConfig(max_steps=12)))
    first = reader.state("ext", host.runs_folder())
    told = "\n".join(first["account"]["counts"])
    assert "12 steps in" in told and "needs about" in told and "a guess from a timed pass" in told
    monkeypatch.setattr(preflight, "pass_seconds", lambda *_: pytest.fail("the pace is known"))
    go(t, dataset, recipe("ext", seed=5, length=LengthConfig(max_steps=12)))
    second = reader.state("ext-2", host.runs_folder())
    assert "as fast as ext was on this device" in "\n".join(second["account"]["counts"])
    assert "seed: 5" in second["account"]["settings"]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_what_a_run_keeps_is_as_large_as_was_said(tiny, dataset, decay) -> None:  # noqa: F811
    config = recipe("kept", ema_decay=decay, length=LengthConfig(max_steps=2))
    go(tiny("sd15"), dataset, config)
    run = Run("kept", host.runs_folder(), host.loras_folder())
    state = run.load_state()
    assert state is not None
    said, file = kept_bytes([tuple(p.shape) for p in state.adapter.values()], config), run.folder / STATE_FILE
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert 0 <= file.stat().st_size - header - 8 - said < 0.02 * said, "optimizers count steps besides"


def test_a_crop_that_needs_a_package_is_told_when_the_run_starts(tiny, dataset, monkeypatch) -> None:  # noqa: F811
    (subset,) = dataset.subsets
    samples = tuple(dataclasses.replace(one, focus=(0.5, 0.5)) for one in subset.samples)
    config = dataclasses.replace(subset.config, crop="focus")
    focused = dataclasses.replace(dataset, subsets=(dataclasses.replace(subset, config=config, samples=samples),))
    monkeypatch.setattr(cautions, "_is_installed", lambda package: package != "smartcrop")
    go(tiny("sd15"), focused, recipe("focused", length=LengthConfig(max_steps=1)))
    told = reader.state("focused", host.runs_folder())["account"]["warnings"]
    assert any(one.startswith("crop: focus needs the Python package smartcrop") for one in told), told


def test_a_damaged_record_hides_no_other_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run.begin("ink", tmp_path / "runs", tmp_path / "loras")
    told = account.Account(run)
    (run.folder / RUN_FILE).write_text("{")
    told.add("warnings", "one")
    assert any("could not be written" in record.getMessage() for record in caplog.records)


def test_what_the_forecast_changed_is_a_warning(tiny, dataset, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(host, "free_bytes", lambda _device: 0)
    go(tiny("sd15"), dataset, recipe("tight"))
    found = reader.state("tight", host.runs_folder())["account"]["warnings"]
    assert any("For this run gradient_checkpointing is on" in line for line in found), found


def test_cautions_are_repeated_when_the_run_starts(tiny, dataset, caplog) -> None:  # noqa: F811
    config = recipe("warned", optimizer=OptimizerConfig("SGD", 1e-6), length=LengthConfig(max_steps=1))
    go(tiny("sd15"), dataset, config, named=job.Named("my_turbo"))
    told = reader.state("warned", host.runs_folder())["account"]
    assert [one.split(":")[0] for one in told["warnings"][:2]] == ["learning rate", "model"]
    assert not set(told["warnings"]) & set(told["notes"])
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("my_turbo" in line and "guess" in line for line in logged)


def test_after_the_last_step_no_time_is_left() -> None:
    at = [status_line(Progress(step, 10, 1, 1, 0.5, 1e-4, 2.0, (10 - step) / 2)) for step in (9, 10)]
    assert at[0].endswith("0:01 left") and "left" not in at[1]
