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


# All of them --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(benchmark, monkeypatch, tmp_path):
    """``bench all`` with other benchmarks: one ends well, one fails, one says nothing, one goes on for ever."""
    module = benchmark("all")
    for name, text in {
        "good": "import json, sys; print('a table'); print(json.dumps({'given': sys.argv[1:]}))",
        "bad": "raise SystemExit('no GPU memory')",
        "mute": "print('nothing of use')",
        "endless": (
            "import subprocess, sys, time, pathlib\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "pathlib.Path(__file__).with_name('child').write_text(str(child.pid))\n"
            "time.sleep(600)"
        ),
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


def test_a_part_that_fails_or_hangs_is_named_and_the_next_begins(parts, tmp_path):
    names = ("bad", "endless", "mute", "missing", "good")
    found = parts.run_all(
        [parts.Part(name, (name, "--x", "1"), 15.0 if name == "endless" else 60.0) for name in names], None, True
    )
    assert list(found) == list(names)
    assert "ended with 1" in found["bad"]["failed"] and "no result" in found["mute"]["failed"]
    assert found["endless"] == {"seconds": 15.0, "failed": "not done after 15 s"}
    assert found["missing"]["failed"] == "there is no missing.py"
    assert found["good"]["result"] == {"given": ["--x", "1", "--json", "--save"]}
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z", "what it had started has ended too"


def test_when_the_time_is_over_the_rest_is_named(parts):
    found = parts.run_all([parts.Part("good", ("good",), 60.0), parts.Part("late", ("good",), 60.0)], 0.0, False)
    assert {one["failed"] for one in found.values()} == {"no time was left for it"}


def test_every_part_is_a_benchmark_and_takes_its_arguments(benchmark):
    module = benchmark("all")
    for part in (*module.ON_GPU, *module.ON_CPU):
        file = FOLDER / f"{part.arguments[0]}.py"
        text = file.read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in ("--json", "--save", *part.arguments[1:]) if word.startswith("--")), part


# A GPU's rate -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "rate"),
    [
        ("NVIDIA H200", 989.4), ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A100 80GB PCIe", 312.0), ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA L4", 121.0), ("NVIDIA L40S", 362.05), ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)  # fmt: skip
def test_a_rate_is_named_only_of_the_card_that_it_was_said_of(benchmark, device, rate):
    peaks = benchmark("_peaks")
    assert peaks.nominal(device, "bf16") == (None if rate is None else rate * 1e12)
    assert peaks.nominal(device, "fp32") is None
    assert {source for _, _, source in peaks.BF16} == set(peaks.SOURCES)


def test_shares_are_of_the_rates_that_were_measured_and_said(benchmark):
    step_time = benchmark("step_time")
    first = side([0.5], flops=100e12, product_flops_per_second=800e12, nominal_flops_per_second=1000e12)
    figures = step_time.figures({step_time.OURS: [first]})
    assert (figures["teraflops_per_second"], figures["share_of_a_large_product"], figures["share_of_nominal_peak"]) == (
        200,
        0.25,
        0.2,
    )
    unknown = {name: value for name, value in first.items() if not name.startswith("nominal")}
    assert "share_of_nominal_peak" not in step_time.figures({step_time.OURS: [unknown]})


def test_what_an_adapter_adds_is_what_torch_counts_of_its_products(benchmark):
    """A LoRA written out, forward and backward, on a linear and on a convolution, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    sides = benchmark("_sides")
    rank = 4
    layers = {"a": torch.nn.Linear(24, 40), "b": torch.nn.Conv2d(6, 10, 3, padding=1)}
    given = {"a": torch.randn(2, 5, 24, requires_grad=True), "b": torch.randn(2, 6, 8, 8, requires_grad=True)}
    downs = {"a": torch.nn.Linear(24, rank, bias=False), "b": torch.nn.Conv2d(6, rank, 3, padding=1, bias=False)}
    ups = {"a": torch.nn.Linear(rank, 40, bias=False), "b": torch.nn.Conv2d(rank, 10, 1, bias=False)}
    with FlopCounterMode(display=False) as counter:
        for name in layers:
            ups[name](downs[name](given[name])).sum().backward()
    with sides.adapted(layers, rank) as counted:
        for name, layer in layers.items():
            layer(given[name])
    assert sum(counted) == counter.get_total_flops()
    layers["a"](given["a"])
    assert len(counted) == 2, "nothing is counted afterwards"
