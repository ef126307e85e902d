"""A run that was stopped ends at the very LoRA, history and measurements of one that was not, whatever it trains with."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, TextConfig
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.run import Run
from safetensors.torch import load_file

from ..test_job import Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401

PACKAGES = {"Lion": "pytorch_optimizer", "CAME": "pytorch_optimizer", "Prodigy": "prodigyopt", "DAdaptAdam": "dadaptation",
            "DAdaptAdamW": "dadaptation", "AdamWScheduleFree": "schedulefree",
            "ProdigyPlusScheduleFree": "prodigyplus", "Muon": "pytorch_optimizer", "AdamW8bit": "bitsandbytes",
            "Lion8bit": "bitsandbytes"}  # fmt: skip
SCHEDULES = {
    "constant": {"warmup_steps": 2},
    "linear": {"warmup_steps": 2},
    "cosine": {"min_share": 0.1, "warmup_share": 0.25},
    "cosine with restarts": {"cycles": 2},
    "annealing": {"cycles": 2, "cycle_steps": 2, "min_share": 0.2},
    "polynomial": {"power": 2.0},
}
PAIRS = [
    ("AdamW", "cosine", ""),
    ("AdamW", "cosine with restarts", ""),
    ("AdamW8bit", "cosine", ""),
    ("Lion", "linear", ""),
    ("Prodigy", "annealing", "d0=0.001"),
    ("DAdaptAdam", "cosine with restarts", "d0=0.001"),
    ("DAdaptAdamW", "polynomial", "d0=0.001"),
    ("Adafactor", "cosine", ""),
    ("Adafactor", "linear", "scale_parameter=True beta1=0.9"),
    ("AdamWScheduleFree", "constant", ""),
    ("CAME", "linear", ""),
    ("SGD", "polynomial", ""),
    ("Lion8bit", "linear", ""),
    ("ProdigyPlusScheduleFree", "constant", "d0=0.001"),
    ("Muon", "linear", ""),
]
"""Every optimizer and every schedule; all of one with all of the other are in ``optim/test_state.py``."""
EVERYTHING: dict[str, Any] = {
    "network": NetworkConfig(rank=4, alpha=2.0, targets="attention", dropout=0.2, rank_dropout=0.2, module_dropout=0.2),
    "length": LengthConfig(max_steps=11),
    "ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def with_validation(dataset):  # noqa: F811
    """The same pictures, one of them held out."""
    (subset,) = dataset.subsets
    return Dataset((dataclasses.replace(subset, config=dataclasses.replace(subset.config, validation_share=0.2)),))


def rows(name: str) -> list[list[dict[str, Any]]]:
    """What the run of this name has written down: every step, and every epoch if it measures."""
    files = [host.runs_folder() / name / f for f in ("history.jsonl", "measured.jsonl")]
    return [[json.loads(line) for line in file.read_text().splitlines()] if file.exists() else [] for file in files]


def assert_the_same(whole, pieces) -> None:
    assert whole.tensors.keys() == pieces.tensors.keys()
    assert all(torch.equal(whole.tensors[key], pieces.tensors[key]) for key in whole.tensors)
    assert rows(whole.epochs.name) == rows(pieces.epochs.name)
    assert [(f.step, f.kind) for f in whole.epochs.files] == [(f.step, f.kind) for f in pieces.epochs.files]
    for mine, theirs in zip(whole.epochs.files, pieces.epochs.files, strict=True):
        a, b = load_file(mine.path), load_file(theirs.path)
        assert all(torch.equal(a[key], b[key]) for key in a), mine.path.name


def stopped(t, pictures, config, patch, error, stops) -> list[int]:
    """Begins, or goes on with, the run and cancels it at each of ``stops``, counted in looks for a cancel; where it stood."""
    places = []
    for at in stops:
        with patch.context() as one:
            only_training_checks(one)
            Stop(one, at, error)
            with pytest.raises(type(error)):
                go(t, pictures, config)
        state = Run(config.name, host.runs_folder(), host.loras_folder()).load_state()
        places.append(state.step if state else 0)
    return places


@pytest.mark.parametrize(("name", "schedule", "arguments"), PAIRS)
def test_three_cancels_change_nothing(tiny, with_validation, monkeypatch, interrupt, name, schedule, arguments):  # noqa: F811
    """With averages, accumulation, dropout and validation; among the cancels are one within a group and one while it measures."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    t = tiny("sd3")
    if name.endswith("8bit") and t.model.device.type != "cuda":
        pytest.skip("8-bit optimizers need a GPU")
    rate = 1.0 if name in ("Prodigy", "DAdaptAdam", "DAdaptAdamW", "ProdigyPlusScheduleFree") else 1e-2
    settings = {**EVERYTHING, "optimizer": OptimizerConfig(
        name, rate, schedule=schedule, accumulate=2, optimizer_args=arguments, **SCHEDULES[schedule]
    )}  # fmt: skip
    whole = go(t, with_validation, recipe("whole", **settings))
    places = stopped(t, with_validation, recipe("pieces", **settings), monkeypatch, interrupt, (4, 6, 24))
    assert places == sorted(places) and 0 < places[-1] < 11
    assert_the_same(whole, go(t, with_validation, recipe("pieces", **settings)))
    assert len(rows("whole")[0]) == 11 and len(rows("whole")[1]) >= 3


def test_a_trained_text_encoder_goes_on_with_everything_else(tiny, with_validation, monkeypatch, interrupt):  # noqa: F811
    t = tiny("sd3")
    settings = {
        **EVERYTHING, "length": LengthConfig(max_steps=3), "text": TextConfig("clip", 5e-3), "gradient_checkpointing": True,
        "optimizer": OptimizerConfig(learning_rate=1e-2, accumulate=2),
    }  # fmt: skip
    whole = go(t, with_validation, recipe("whole", **settings))
    assert stopped(t, with_validation, recipe("pieces", **settings), monkeypatch, interrupt, (2, 3)) == [0, 2]
    assert_the_same(whole, go(t, with_validation, recipe("pieces", **settings)))


def test_half_precision_goes_on_with_its_loss_scale(tiny, with_validation, monkeypatch, interrupt):  # noqa: F811
    """Not to the bit: on a CPU torch's half-precision kernels themselves differ a little from one run to the next."""
    monkeypatch.setattr("lora_atelier.training.tensors.precision.has_native_support", lambda *_: True)
    t = tiny("sd3")
    settings = {**EVERYTHING, "precision": "fp16", "optimizer": OptimizerConfig(learning_rate=1e-2)}
    whole = go(t, with_validation, recipe("whole", **settings))
    stopped(t, with_validation, recipe("pieces", **settings), monkeypatch, interrupt, (2, 22))
    states = lambda name: Run(name, host.runs_folder(), host.loras_folder()).load_state()  # noqa: E731
    assert states("pieces").scaler["scale"] > 1
    pieces = go(t, with_validation, recipe("pieces", **settings))
    assert pieces.losses == pytest.approx(whole.losses, rel=5e-3)
    assert states("pieces").scaler == states("whole").scaler and states("pieces").step == states("whole").step


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam", "Adafactor", "AdamW"])
def test_the_history_tells_the_rate_that_moved_the_weights(tiny, dataset, name):  # noqa: F811
    """What an estimate makes of the rate is seen in the weights: without momentum, decay and clipping by hand."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    arguments, rate = {
        "Prodigy": ("d0=0.001", 1.0), "DAdaptAdam": ("d0=0.001", 1.0), "AdamW": ("", 1e-2),
        "Adafactor": ("relative_step=True warmup_init=True", 1.0),
    }[name]  # fmt: skip
    schedule = "constant" if name == "Adafactor" else "linear"
    optimizer = OptimizerConfig(name, rate, schedule=schedule, optimizer_args=arguments)
    go(tiny("sd3"), dataset, recipe(optimizer=optimizer))
    told = [row["rate"] for row in rows("tiny")[0]]
    falling = [1 - step / 9 for step in range(9)]
    if name == "AdamW":
        assert told == pytest.approx([1e-2 * share for share in falling])
    elif name == "Adafactor":  # Shazeer & Stern 2018: 1e-6 t while it warms up
        assert told == pytest.approx([1e-6 * (step + 1) for step in range(9)])
    else:
        estimates = [rate / share for rate, share in zip(told, falling, strict=True)]
        state = Run("tiny", host.runs_folder(), host.loras_folder()).load_state()
        assert estimates[0] == pytest.approx(1e-3)
        assert all(later >= earlier * (1 - 1e-9) for earlier, later in itertools.pairwise(estimates))
        assert 1e-3 < estimates[-1] <= state.optimizer["param_groups"][0]["d"]


@pytest.mark.cpu_only("on a GPU the suite loads models in float32, which makes them others than those of the stored run")
def test_a_run_that_an_earlier_version_began_goes_on(tiny, with_validation, fresh_folders):  # noqa: F811
    """Two steps of eight lie beside this file, with the losses and the LoRA that the version ended with that had begun them."""
    stored = Path(__file__).parent / "begun"
    shutil.copytree(
        stored, host.runs_folder() / "begun", ignore=lambda _, names: {n for n in names if n.startswith(("begun", "exp"))}
    )
    (host.loras_folder() / "begun").mkdir(parents=True)
    shutil.copy(stored / "begun-step00000002.safetensors", host.loras_folder() / "begun")
    network = NetworkConfig(rank=2, alpha=1.0, targets="attention", dropout=0.2)
    rate = OptimizerConfig(learning_rate=1e-2, schedule="cosine")
    whole = recipe("begun", network=network, length=LengthConfig(max_steps=8), ema_decay=0.9, optimizer=rate)
    with pytest.raises(AtelierError, match=r"begun was begun by an earlier version, or its inputs.json is gone"):
        go(tiny("sd3"), with_validation, whole)
    done = go(tiny("sd3"), with_validation, whole, when="continue with the changes")
    expected = json.loads((stored / "expected.json").read_text())
    assert done.epochs.name == "begun", "or it has begun another run"
    assert rows("begun")[0][:2] == [json.loads(line) for line in (stored / "history.jsonl").read_text().splitlines()]
    assert done.losses[:2] == pytest.approx(expected["losses"][:2])
    # That version drew other elements to drop.
    assert done.losses == pytest.approx(expected["losses"], rel=1e-2)
    norms = {name: tensor.double().norm().item() for name, tensor in done.tensors.items()}
    for name in [name for name in norms if name.endswith(".alpha")]:  # that version had the scale of a half in the factor
        assert norms[name] == 1.0
        norms |= {name: 2.0, (up := name.replace(".alpha", ".lora_up.weight")): norms[up] / 2}
    assert norms == pytest.approx(expected["norms"], rel=5e-2)
