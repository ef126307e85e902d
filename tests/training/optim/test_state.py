"""A run that goes on is the run that was never stopped: every optimizer with every schedule, through the run's real files."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from lora_atelier.training.config import OptimizerConfig, OptimizerName, ScheduleName
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optim import optimizers, schedules
from lora_atelier.training.runs.run import Run, State
from torch import nn

TOTAL, STOP = 12, 5
SETTINGS = {
    "constant": {},
    "linear": {"warmup_steps": 3},
    "cosine": {"min_share": 0.1, "warmup_share": 0.25},
    "cosine with restarts": {"cycles": 3},
    "annealing": {"cycles": 2, "cycle_steps": 4, "min_share": 0.2},
    "polynomial": {"power": 2.0},
}
ARGUMENTS = {
    "Prodigy": "weight_decay=0.01 decouple=True d0=0.0001 use_bias_correction=True",
    "DAdaptAdam": "decouple=True weight_decay=0.01 betas=0.9,0.999 d0=0.001",
    "DAdaptAdamW": "d0=0.001",
    "ProdigyPlusScheduleFree": "d0=0.001",
    "Adafactor": "scale_parameter=False relative_step=False warmup_init=False beta1=0.9",
}
OWN_RATE = "relative_step=True scale_parameter=True warmup_init=True"
PACKAGES = {"Lion": "pytorch_optimizer", "CAME": "pytorch_optimizer", "Prodigy": "prodigyopt", "DAdaptAdam": "dadaptation",
            "DAdaptAdamW": "dadaptation", "AdamWScheduleFree": "schedulefree",
            "ProdigyPlusScheduleFree": "prodigyplus", "Muon": "pytorch_optimizer"}  # fmt: skip


def make(name: str, schedule: str, arguments: str | None = None) -> OptimizerConfig:
    rate = 1.0 if name in ("Prodigy", "DAdaptAdam", "DAdaptAdamW", "ProdigyPlusScheduleFree") else 0.01
    text = ARGUMENTS.get(name, "") if arguments is None else arguments
    return OptimizerConfig(name, rate, schedule=schedule, optimizer_args=text, **SETTINGS[schedule])


class Weights(nn.Module):
    """Two low-rank branches, one of convolution's shape, with their up halves at zero, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        shapes = {"down": (4, 6), "up": (5, 4), "conv": (3, 2, 3, 3), "vector": (7,)}
        for name, shape in shapes.items():
            start = torch.zeros(shape) if name == "up" else torch.randn(shape, generator=draw)
            setattr(self, name, nn.Parameter(start))

    def groups(self, rate: float, ratio: float) -> optimizers.Groups:
        return [([self.down, self.up], rate), ([self.conv, self.vector], rate * ratio)]


def train(weights: Weights, optimizer: torch.optim.Optimizer, config: OptimizerConfig, first: int, last: int) -> None:
    for step in range(first, last):
        draw = torch.Generator().manual_seed(step)
        for p in weights.parameters():
            p.grad = 0.3 * p.detach() + torch.randn(p.shape, generator=draw)
        optimizers.set_rate(optimizer, schedules.factor(config, step, TOTAL))
        optimizer.step()


def whole_and_resumed(build, config: OptimizerConfig, folder: Path) -> tuple[dict, dict, dict, dict]:
    """Weights and optimizer state of an uninterrupted run, and of one that stopped and went on from its file."""
    whole = Weights()
    optimizer = build(whole)
    train(whole, optimizer, config, 0, TOTAL)

    begun = Weights()
    first = build(begun)
    train(begun, first, config, 0, STOP)
    run = Run.begin("ink", folder / "runs", folder / "loras")
    run.save_state(State(STOP, begun.state_dict(), first.state_dict(), {}))

    state = Run(run.name, folder / "runs", folder / "loras").load_state()
    resumed = Weights()
    second = build(resumed)
    resumed.load_state_dict(dict(state.adapter))
    second.load_state_dict(dict(state.optimizer))
    train(resumed, second, config, state.step, TOTAL)
    return whole.state_dict(), resumed.state_dict(), optimizer.state_dict(), second.state_dict()


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("schedule", get_args(ScheduleName))
@pytest.mark.parametrize("name", [name for name in get_args(OptimizerName) if not name.endswith("8bit")])
def test_going_on_is_never_having_stopped(name, schedule, tmp_path):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    if name.endswith("ScheduleFree") and schedule != "constant":
        with pytest.raises(AtelierError, match="choose constant"):
            make(name, schedule)
        return
    config = make(name, schedule)

    def build(weights: Weights) -> torch.optim.Optimizer:
        return optimizers.build(config, weights.groups(config.peak, 1.0 if name == "Prodigy" else 0.5))

    whole, resumed, optimizer, second = whole_and_resumed(build, config, tmp_path)
    assert not any(torch.equal(whole[k], v) for k, v in Weights().state_dict().items())
    assert equal(whole, resumed)
    assert equal(optimizer, second)


@pytest.mark.parametrize("arguments", [OWN_RATE, "relative_step=True"])
def test_adafactor_with_its_own_rate_goes_on(arguments, tmp_path):
    config = make("Adafactor", "constant", arguments)
    whole, resumed, optimizer, second = whole_and_resumed(
        lambda weights: optimizers.build(config, weights.groups(config.peak, 1.0)), config, tmp_path
    )
    assert equal(whole, resumed)
    assert equal(optimizer, second)
    with pytest.raises(AtelierError, match="Adafactor sets its own rate"):
        make("Adafactor", "cosine", arguments)


@pytest.mark.parametrize(
    "arguments",
    ["use_schedulefree=false", "factored=false", "use_speed=true", "eps=none", "prodigy_steps=3", "split_groups=false"],
)
def test_prodigy_plus_goes_on_with_its_other_settings(arguments, tmp_path):
    pytest.importorskip("prodigyplus")
    config = make("ProdigyPlusScheduleFree", "constant", f"{arguments} d0=0.001")
    whole, resumed, optimizer, second = whole_and_resumed(
        lambda weights: optimizers.build(config, weights.groups(1.0, 0.5)), config, tmp_path
    )
    assert equal(whole, resumed) and equal(optimizer, second)


@pytest.mark.parametrize("arguments", ["slice_p=3", "beta3=0.9 growth_rate=1.02", "safeguard_warmup=true"])
def test_prodigys_other_settings_go_on(arguments, tmp_path):
    pytest.importorskip("prodigyopt")
    config = make("Prodigy", "linear", arguments)
    whole, resumed, *_ = whole_and_resumed(lambda weights: optimizers.build(config, weights.groups(1.0, 1.0)), config, tmp_path)
    assert equal(whole, resumed)


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit"])
def test_eight_bit_states_go_on(name, tmp_path):
    """The library computes on the CPU as well in newer versions, too slowly for use, which is enough for its state."""
    bitsandbytes = pytest.importorskip("bitsandbytes", "0.49")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, build = OptimizerConfig(schedule="constant"), getattr(bitsandbytes.optim, name)
    ends = []
    for stops in (False, True):
        p = nn.Parameter(torch.linspace(-1, 1, 8192, device=device).view(64, 128))
        optimizer = build([{"params": [p], "lr": 0.01, "initial_lr": 0.01}])
        for step in range(TOTAL):
            if stops and step == STOP:
                run = Run.begin("ink", tmp_path / "runs", tmp_path / "loras")
                run.save_state(State(step, {"p": p}, optimizer.state_dict(), {}))
                state = run.load_state()
                p = nn.Parameter(state.adapter["p"].to(device))
                optimizer = build([{"params": [p], "lr": 0.01, "initial_lr": 0.01}])
                optimizer.load_state_dict(dict(state.optimizer))
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(device)
            optimizers.set_rate(optimizer, schedules.factor(config, step, TOTAL))
            optimizer.step()
        assert any(v.dtype == torch.uint8 for v in optimizer.state[p].values() if isinstance(v, torch.Tensor))
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_tensors_that_share_memory_can_be_kept(tmp_path):
    table = torch.arange(6.0)
    run = Run.begin("ink", tmp_path / "runs", tmp_path / "loras")
    state = {"a": table, "b": table, "view": table[2:4], "odd": [None, (1, 2.5, [True, "x"]), {3: float("inf"), "n": {}}]}
    run.save_state(State(1, {}, state, {}))
    read = run.load_state().optimizer
    assert equal(dict(read), state)
