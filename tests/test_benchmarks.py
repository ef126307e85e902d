"""The parts of the benchmarks that reckon: names of results, ratios, and the refusal to compare what is not the same."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import COMFYUI

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the benchmarks, which import each other by their plain names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == FOLDER:
            del sys.modules[name]


def test_a_result_is_named_after_the_machine_and_the_day(benchmark):
    common = benchmark("_common")
    cpu = {"device": "CPU, 2 threads", "cpu": "Intel(R) Xeon(R) Processor @ 2.80GHz", "cores": 2, "date": "2026-11-21"}
    gpu = {**cpu, "device": "NVIDIA GeForce RTX 4090"}
    named = [common.result_path("step_time", one, FOLDER, "256px-batch1").name for one in (cpu, gpu)]
    assert named == [
        "step_time-256px-batch1-intel-xeon-2.80ghz-2-cores-2026-11-21.json",
        "step_time-256px-batch1-rtx-4090-2026-11-21.json",
    ]


def side(seconds: list[float], layers: int = 3, **more: Any) -> dict[str, Any]:
    return {"seconds": seconds, "layers": layers, "parameters": 10 * layers, "peak_bytes": 2**30, **more}


def test_ratios_are_of_medians_over_all_rounds(benchmark):
    step_time = benchmark("step_time")
    found = {
        step_time.OURS: [
            side([1.0, 9.0], forward_seconds=[0.4], extra_base_copies=0.01),
            side([1.0, 1.0], forward_seconds=[0.5, 0.6]),
        ],
        step_time.PEFT: [side([2.0])],
        step_time.OURS_EVERY: [side([3.0], 5)],
        step_time.BYPASS: [side([4.0], 9, extra_base_copies=1.0)],
    }
    figures = step_time.figures(found)
    assert figures["ratio_to_peft"] == 0.5
    assert figures["ratio_to_stock_bypass"] == 0.75
    assert figures["share_of_floor"] == 1.0
    assert figures["extra_base_copies"] == 0.01
    assert "ratio_to_stock_default" not in figures


def test_peft_is_compared_on_the_same_layers_only(benchmark):
    step_time = benchmark("step_time")
    with pytest.raises(SystemExit, match="not the same layers"):
        step_time.figures({step_time.OURS: [side([1.0], 3)], step_time.PEFT: [side([1.0], 4)]})


def test_a_loss_between_two_moments_lies_on_the_line_between_them(benchmark):
    against_stock = benchmark("against_stock")
    course = against_stock.Course(seconds=[0.0, 10.0, 20.0])
    losses = [1.0, 0.5, 0.25]
    assert [against_stock.at_time(course, t, losses) for t in (0.0, 5.0, 10.0, 12.0, 99.0)] == pytest.approx(
        [1.0, 0.75, 0.5, 0.45, 0.25]
    )


def one_parameter():
    import torch

    parameter = torch.nn.Parameter(torch.zeros(3))
    return parameter, torch.optim.SGD([parameter], lr=1.0)


def step(parameter, optimizer) -> None:
    parameter.grad = parameter.detach() * 0 + 1
    optimizer.step()


def test_the_clock_hears_the_end_of_every_step_of_any_optimizer(benchmark):
    sides, case = benchmark("_sides"), benchmark("_case")
    found, trained = case.Found(), one_parameter()
    with sides.watched(found, sides._memory.Peak(), "wall"):
        for _ in range(3):
            step(*trained)
    step(*trained)
    assert len(found.ends) == 3 and sorted(found.ends) == found.ends and found.parameters == 3


def test_a_run_is_followed_in_copies_of_what_it_has_learnt(benchmark):
    against_stock = benchmark("against_stock")
    course, trained = against_stock.Course(), one_parameter()
    with against_stock.followed(course, lambda: {"weight": trained[0]}, 2):
        for _ in range(5):
            step(*trained)
    assert course.steps == [2, 4] and 0 < course.seconds[0] < course.seconds[1]
    assert [lora["weight"][0].item() for lora in course.loras] == [-2, -4]


def test_a_step_asks_little_more_of_the_device_than_the_bare_model():
    """Counted on Stable Diffusion 1.5 at its real size, without numbers; counts do not depend on the machine."""
    line = [sys.executable, str(FOLDER / "launches.py"), "--models", "sd15", "--no-peft", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, "ATELIER_COMFYUI": str(COMFYUI)})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["models"]["sd15"]["ours"]["layers"] == 160
    assert found["forward_ratio"] <= 1.3 and found["backward_ratio"] <= 2.0
