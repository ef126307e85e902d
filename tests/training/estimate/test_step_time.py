"""How long a run will take, before its first step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from lora_atelier.training.config import LossConfig, NetworkConfig, SubsetConfig, TrainingConfig
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset, Sample, Subset
from lora_atelier.training.estimate import step_time
from lora_atelier.training.performance.thrift import Thrift


def plan(side: int = 64, batch: int = 1, pictures: int = 4) -> Plan:
    samples = tuple(Sample(Path(f"{i}.png"), side, side, "a", str(i)) for i in range(pictures))
    return Plan(Dataset((Subset(SubsetConfig("input/a", side, batch), samples, 1),)), 0)


def like(config: TrainingConfig | None = None, device: str = "card", model: str = "m", **of_plan: int) -> dict[str, str]:
    return step_time.circumstances(config or TrainingConfig("a"), plan(**of_plan), model, device)


def remember(runs: Path, name: str, pace: object, when: int) -> None:
    (runs / name).mkdir()
    path = runs / name / "run.json"
    path.write_text(json.dumps({"pace": pace}))
    os.utime(path, (when, when))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"), (45, "45 seconds"), (100, "2 minutes"), (3540, "59 minutes"), (3600, "1 hour"),
        (5400, "1 hour 30 minutes"), (12_360, "3 hours 30 minutes"), (86_400, "1 day"), (2 * 86_400 + 3600, "2 days 1 hour"),
    ],
)  # fmt: skip
def test_durations_are_as_exact_as_a_forecast_is(seconds: float, words: str) -> None:
    assert step_time.duration(seconds) == words


def test_the_newest_run_in_the_same_circumstances_counts(tmp_path: Path) -> None:
    remember(tmp_path, "old", step_time.kept(9.0, 100, like()), 1000)
    remember(tmp_path, "new", step_time.kept(2.0, 100, like()), 2000)
    remember(tmp_path, "other", step_time.kept(0.5, 100, like(device="another")), 3000)
    found = step_time.earlier(tmp_path, like())
    assert found is not None and found.seconds == 2.0
    basis = "as fast as new was on this device with all that it saved and drew"
    assert found.sentence(90) == f"time: about 3 minutes for 90 steps, {basis}"


@pytest.mark.parametrize("kind", ["model", "size", "batch", "checkpointing", "rank", "precision"])
def test_a_run_in_other_circumstances_does_not(tmp_path: Path, kind: str) -> None:
    other = {
        "model": like(model="n"), "size": like(side=128), "batch": like(batch=2),
        "checkpointing": like(TrainingConfig("a", gradient_checkpointing=True)),
        "rank": like(TrainingConfig("a", network=NetworkConfig(rank=4))),
        "precision": like(TrainingConfig("a", precision="fp32")),
    }[kind]  # fmt: skip
    remember(tmp_path, "other", step_time.kept(2.0, 100, other), 1000)
    assert other != like() and step_time.earlier(tmp_path, like()) is None


def test_its_name_and_its_length_do_not_matter() -> None:
    assert like(TrainingConfig("another")) == like()


@pytest.mark.parametrize("pace", ["x", None, 3, [], {"seconds": "2"}, {"seconds": -1.0}, {"seconds": 1e300}, {"seconds": True}])
def test_what_no_run_writes_is_passed_over(tmp_path: Path, pace: object) -> None:
    remember(tmp_path, "odd", {**pace, "circumstances": like()} if isinstance(pace, dict) else pace, 1000)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "empty").mkdir()
    assert step_time.earlier(tmp_path, like()) is None
    assert step_time.earlier(tmp_path / "nowhere", like()) is None


def test_too_few_steps_say_nothing() -> None:
    assert step_time.kept(1.0, 9, {}) is None and step_time.kept(1.0, 10, {}) is not None
    assert step_time.kept(float("inf"), 100, {}) is None and step_time.kept(0.0, 100, {}) is None


def test_a_guess_counts_the_way_back_and_what_is_computed_twice() -> None:
    """Forward and back, half of the blocks once more, three pictures: 2 x 2.5 x 3 seconds; with a preservation prompt the frozen
    model's answer and the same once more."""
    half = Thrift(4, 4, frozenset({0, 1}))
    found = step_time.from_passes(2.0, half, TrainingConfig("a", loss=LossConfig(preservation=0.5)), 3)
    asked = TrainingConfig("a", loss=LossConfig(preservation=0.5, preservation_prompt="a woman"))
    assert step_time.from_passes(2.0, half, asked, 3).seconds == 36.0
    assert step_time.from_passes(2.0, half, TrainingConfig("a"), 3, masked=0.5).seconds == 18.0
    # A slider goes forward and back twice; one from prompts has three answers of the model as it was besides.
    plain = TrainingConfig("a")
    assert step_time.from_passes(2.0, half, plain, 3, slider="pairs of pictures").seconds == 30.0
    assert step_time.from_passes(2.0, half, plain, 3, slider="prompts").seconds == 48.0
    assert found.seconds == 15.0 and "a guess from a timed pass of one picture" in found.sentence(1)
    assert step_time.from_passes(2.0, Thrift(4, 4), TrainingConfig("a"), 1).seconds == 4.0
