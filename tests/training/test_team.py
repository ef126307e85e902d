"""Several processes that train one LoRA: the same as one process that has all their batches in each update.

The processes are real ones, and talk by gloo. What one process would learn is learnt by one process, in the ordinary way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_atelier.demo.server import free_port
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    TextConfig,
    TrainingConfig,
    to_dict,
)
from lora_atelier.training.performance.team import MARK, SHARD, Team
from PIL import Image
from safetensors.torch import load_file

WORK = Path(__file__).with_name("team_work.py")
PICTURES = 7
"""An odd number: the last update of an epoch has fewer batches than there are processes."""
TOGETHER = [1, 2, 4]


def recipe(name: str, **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "network": NetworkConfig(rank=2, alpha=1.0), "optimizer": OptimizerConfig(learning_rate=1e-2), "seed": 7,
        "length": LengthConfig(epochs=2), "save_precision": "fp32", "precision": "fp32",
    }  # fmt: skip
    return TrainingConfig(name, **{**values, **changes})


KINDS = {
    "lora": ("sd15", recipe("lora")),
    "dora": ("sd15", recipe("dora", network=NetworkConfig(rank=2, weight_decompose=True, dropout=0.2))),
    "text": ("sd15", recipe("text", text=TextConfig("clip", 5e-3))),
    "average": ("sd3", recipe("average", ema_decay=0.9, loss=LossConfig("huber"))),
    "prodigy": ("sd15", recipe("prodigy", optimizer=OptimizerConfig("Prodigy", 1.0))),
    "adafactor": ("sd15", recipe("adafactor", optimizer=OptimizerConfig("Adafactor", 1e-2))),
    "grouped": ("sd15", recipe("grouped", optimizer=OptimizerConfig(learning_rate=1e-2, accumulate=2))),
}  # fmt: skip


def begin(
    size: int,
    base: Path,
    pictures: Path,
    runs: list[dict[str, Any]],
    others: dict[int, list[dict[str, Any]]] | None = None,
    shard: bool = False,
) -> list[subprocess.Popen[str]]:
    """``others``: what some processes are given in place of ``runs``; ``shard``: each holds a part of the model."""
    told = [
        json.dumps({"base": str(base), "pictures": str(pictures), "runs": (others or {}).get(rank, runs)}) for rank in range(size)
    ]  # fmt: skip
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    shared[MARK], shared[SHARD] = "1", str(int(shard))
    return [
        subprocess.Popen(
            [sys.executable, str(WORK), told[rank]], env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    said = [process.communicate(timeout=600)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    stream = torch.Generator().manual_seed(0)
    for i in range(PICTURES):
        size = (96, 64) if i < 3 else (64, 64)
        noise = (torch.rand(8, 8, 3, generator=stream) * 255).to(torch.uint8).numpy()
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i % 2}", encoding="utf-8")
    return folder


def named(size: int, config: TrainingConfig) -> TrainingConfig:
    """What so many processes are given for an update of as many batches as four would have with the recipe as it is."""
    return replace(config, optimizer=replace(config.optimizer, accumulate=4 * config.optimizer.accumulate // size))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, pictures: Path, comfyui: object) -> dict[int, Path]:
    """Folders of what 1, 2 and 4 processes have made of every kind."""
    folders = {}
    for size in TOGETHER:
        base = folders[size] = tmp_path_factory.mktemp(f"by-{size}")
        runs = [
            {"name": name, "model": model, "recipe": to_dict(named(size, config)), "preview": int(name == "lora")}
            for name, (model, config) in KINDS.items()
        ]  # fmt: skip
        for code, said in ended(begin(size, base, pictures, runs)):
            assert code == 0, said
    return folders


def files(base: Path, name: str) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted((base / "loras" / name).glob("*.safetensors"))}


def history(base: Path, name: str) -> list[dict[str, Any]]:
    lines = (base / "runs" / name / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("size", TOGETHER[1:])
@pytest.mark.parametrize("name", KINDS)
def test_what_several_learn_is_what_one_learns(found: dict[int, Path], name: str, size: int) -> None:
    alone, together = files(found[1], name), files(found[size], name)
    assert alone.keys() == together.keys() and alone
    for file, tensors in alone.items():
        assert tensors.keys() == together[file].keys()
        for key, expected in tensors.items():
            if expected.is_floating_point():
                assert (together[file][key] - expected).norm() <= 2e-3 * expected.norm() + 1e-6, (file, key)
    moved = [value for key, value in list(alone.values())[-1].items() if "lora_up" in key]
    assert any(value.abs().max() > 0 for value in moved)


@pytest.mark.parametrize("size", TOGETHER[1:])
@pytest.mark.parametrize("name", KINDS)
def test_every_steps_loss_is_written_down_once(found: dict[int, Path], name: str, size: int) -> None:
    alone, together = history(found[1], name), history(found[size], name)
    assert [row["step"] for row in together] == [row["step"] for row in alone] == list(range(1, 2 * PICTURES + 1))
    for one, other in zip(alone, together, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert other["rate"] == pytest.approx(one["rate"], rel=1e-3)


def test_only_one_draws(found: dict[int, Path]) -> None:
    drawn = [sorted(path.name for path in (base / "runs" / "lora").rglob("*.png")) for base in found.values()]
    assert drawn[0] == drawn[1] == drawn[2] and drawn[0]


def test_where_one_fails_all_end_at_that_step_and_what_was_learnt_is_kept(pictures: Path, tmp_path: Path) -> None:
    model, config = KINDS["lora"]
    run = {"name": "lora", "model": model, "recipe": to_dict(named(2, config)), "stop": 3, "how": "fails"}
    first, last = ended(begin(2, tmp_path, pictures, [run]))
    assert first[0] == last[0] == 1
    assert "this process has failed" in last[1]
    assert "Process 1 of this training has failed: RuntimeError: this process has failed. What was learnt is kept" in first[1]
    done = len(history(tmp_path, "lora"))
    assert 0 < done < 2 * PICTURES
    assert [name for name in files(tmp_path, "lora") if str(done) in name]


def test_a_value_of_a_sweep_that_fails_leaves_the_others_to_be_trained(pictures: Path, tmp_path: Path, comfyui: object) -> None:
    model, config = KINDS["lora"]
    values = [replace(named(2, config), name="swept", varied=f"seed {number}") for number in (1, 2)]
    runs = [{"name": "swept", "model": model, "recipe": to_dict(one)} for one in values]
    runs[0] |= {"stop": 3, "how": "refuses"}
    for code, said in ended(begin(2, tmp_path, pictures, runs)):
        assert code == 0 and "a picture is gone" in said, said
    first, second = (one.run_name for one in values)
    assert 0 < len(history(tmp_path, first)) < len(history(tmp_path, second)) == 2 * PICTURES
    failed = json.loads((tmp_path / "runs" / first / "run.json").read_text(encoding="utf-8"))["failed"]
    assert failed.startswith("Process 1 of this training has failed: a picture is gone. What was learnt is kept")


def test_what_would_be_trained_otherwise_is_not_trained(pictures: Path, tmp_path: Path) -> None:
    model, config = KINDS["lora"]
    others = {0: {}, 1: {"seed": 8}}
    runs = [[{"name": "lora", "model": model, "recipe": to_dict(replace(config, **others[rank]))}] for rank in range(2)]
    said = ended(begin(2, tmp_path, pictures, runs[0], {1: runs[1]}))
    assert all(code for code, _ in said)
    assert "would train different things (seed is 7 in the first process and here 8)" in said[1][1]


def test_it_goes_on_with_another_number_of_processes(pictures: Path, tmp_path: Path, found: dict[int, Path]) -> None:
    """One of four is killed; two go on, with twice the accumulate."""
    model, config = KINDS["lora"]
    run = {"name": "lora", "model": model, "recipe": to_dict(named(4, config)), "stop": 4}
    codes = [code for code, _ in ended(begin(4, tmp_path, pictures, [run]))]
    assert codes[-1] == 9 and all(codes)
    assert 0 < len(history(tmp_path, "lora")) < 2 * PICTURES
    go_on = [{"name": "lora", "model": model, "recipe": to_dict(named(2, config))}]
    for code, said in ended(begin(2, tmp_path, pictures, go_on)):
        assert code == 0, said
    assert [row["step"] for row in history(tmp_path, "lora")] == list(range(1, 2 * PICTURES + 1))
    whole, pieced = files(found[1], "lora")["lora.safetensors"], files(tmp_path, "lora")["lora.safetensors"]
    for key, expected in whole.items():
        if expected.is_floating_point():
            assert (pieced[key] - expected).norm() <= 2e-3 * expected.norm() + 1e-6, key


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_each_step_is_one_processs_and_no_round_crosses_an_end(size: int, accumulate: int) -> None:
    width, total, pauses = size * accumulate, 23, [5, 7, 14, 23]
    done = []
    step = 0
    for pause in pauses:
        while step < pause:
            rounds = [Team(rank, size).round(step, pause, width) for rank in range(size)]
            assert len(set(rounds)) == 1 and 1 <= len(rounds[0]) <= size and rounds[0].stop <= pause
            assert rounds[0].start // width == (rounds[0].stop - 1) // width
            done += [step + rank for rank in range(size) if step + rank in rounds[0]]
            step = rounds[0].stop
    assert done == list(range(total))
