"""What a page asks of a run that trains, through the real loop on a tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training import host, job
from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, SubsetConfig, TrainingConfig
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.estimate import preflight
from lora_atelier.training.runs import live, reader
from safetensors.torch import load_file

PREVIEW = job.Preview("", "", 1, 1.0, "euler", "normal", 0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, comfyui):
    """Three pictures, a step each."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        noise_picture((64, 64), 40, seed=i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}", encoding="utf-8")
    return Dataset(scan.scan(folder, SubsetConfig("input/pictures", resolution=64, bucket_step=32)))


@pytest.fixture
def told(tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """What the pages hear; every test has its own runs."""
    monkeypatch.setattr(host, "runs_folder", lambda: tmp_path / "runs")
    monkeypatch.setattr(host, "loras_folder", lambda: tmp_path / "loras")
    monkeypatch.setattr(host, "progress", lambda total: lambda step, preview=None: None)
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(host, "send", lambda event, status: heard.append(status))
    return heard


def sending(monkeypatch, *commands: tuple[int, live.Command]) -> None:
    """Wishes in the middle of a step: while the loop is at its (1-based) n-th."""
    seen = [0]

    def check() -> None:
        seen[0] += 1
        for at, command in commands:
            if at == seen[0]:
                live.find(live.running()[0]).send(command)

    monkeypatch.setattr(host, "check_interrupt", check)
    monkeypatch.setattr(preflight, "pass_seconds", lambda _session, _batch: None)  # it looks for a cancel as well


def go(tiny, dataset, name: str, preview: job.Preview = PREVIEW) -> job.Trained:
    config = TrainingConfig(
        name, network=NetworkConfig(2, 1.0, "attention"), optimizer=OptimizerConfig(learning_rate=1e-2),
        length=LengthConfig(epochs=3), save_precision="fp32", seed=7,
    )  # fmt: skip
    t = tiny("sd3")
    with torch.inference_mode():
        return job.run_training(t.model, t.text, t.codec, dataset, config, preview=preview, graph={}, node="4")


def files(trained: job.Trained) -> list[tuple[str, int]]:
    return [(saved.path.name, saved.step) for saved in trained.epochs.files]


def test_stop_and_keep_ends_the_run_and_hands_on_what_there_is(tiny, dataset, told, monkeypatch):
    sending(monkeypatch, (5, "stop"))
    trained = go(tiny, dataset, "stopped")
    assert files(trained) == [("stopped-000001.safetensors", 3), ("stopped.safetensors", 5)]
    assert len(trained.losses) == 5 and not live.running()
    last = load_file(trained.epochs.files[-1].path)
    assert all((trained.tensors[key] == last[key]).all() for key in last)
    assert told[-1]["phase"] == "finished"
    state = reader.state("stopped", host.runs_folder())
    assert (state["finished"], state["last"], state["total"]) == (True, 5, 9)
    again = go(tiny, dataset, "stopped")
    assert files(again) == files(trained), "what was stopped and kept is not trained on"


def test_save_and_sample_now_leave_files_and_change_no_weight(tiny, dataset, told, monkeypatch):
    sending(monkeypatch, (2, "save"), (4, "sample"), (4, "save"))
    trained = go(tiny, dataset, "watched")
    names = ["watched-step00000002", "watched-000001", "watched-step00000004", "watched-000002", "watched"]
    assert files(trained) == list(zip((f"{name}.safetensors" for name in names), (2, 3, 4, 6, 9), strict=True))
    labels = [sample["label"] for sample in reader.state("watched", host.runs_folder())["samples"]]
    assert "step 4" in labels and labels[-1] == "epoch 3"

    monkeypatch.setattr(host, "check_interrupt", lambda: None)
    alone = go(tiny, dataset, "alone")
    assert alone.losses == trained.losses
    assert all((trained.tensors[key] == alone.tensors[key]).all() for key in alone.tensors)


def test_the_pages_hear_how_it_goes(tiny, dataset, told, monkeypatch):
    sending(monkeypatch, (3, "save"))
    go(tiny, dataset, "told")
    assert told[0]["phase"] == "preparing" and {status["node"] for status in told} == {"4"}
    training = [status for status in told if status["phase"] == "training"]
    assert [status["step"] for status in training] == sorted(status["step"] for status in training)
    assert training[-1]["step"] == training[-1]["total"] == 9 and training[-1]["epochs"] == 3
    assert 0 < training[-1]["used"] <= training[-1]["memory"]
    assert any(status["commands"] == ["save"] for status in told) and not told[-1]["commands"]
    assert "sampling" in {status["phase"] for status in told}


def test_the_end_is_told_as_what_it_was(tiny, dataset, told, monkeypatch):
    from comfy.model_management import InterruptProcessingException

    def cancel() -> None:
        raise InterruptProcessingException

    monkeypatch.setattr(host, "check_interrupt", cancel)
    with pytest.raises(InterruptProcessingException):
        go(tiny, dataset, "cancelled")
    assert told[-1]["phase"] == "cancelled" and not live.running()
    assert reader.state("cancelled", host.runs_folder())["failed"] == ""

    def fail() -> None:
        raise OSError("no such picture")

    monkeypatch.setattr(host, "check_interrupt", fail)
    with pytest.raises(OSError):
        go(tiny, dataset, "failed")
    assert (told[-1]["phase"], told[-1]["why"]) == ("failed", "no such picture")
    assert reader.state("failed", host.runs_folder())["failed"] == "no such picture"
    monkeypatch.setattr(host, "check_interrupt", cancel)
    with pytest.raises(InterruptProcessingException):
        go(tiny, dataset, "failed")
    assert reader.state("failed", host.runs_folder())["failed"] == "", "the next attempt is what counts"
