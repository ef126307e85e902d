"""Every optimizer on a quadratic: its weights against another implementation, or against the paper's formula in numpy."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from lora_atelier.training.config import OptimizerConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optim import optimizers
from torch import nn

STEPS = 25


def quadratic(dtype: torch.dtype = torch.float64) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    """A matrix and a vector, and where the minimum of ``descend`` lies."""
    draw = torch.Generator().manual_seed(3)
    parameters = [nn.Parameter(torch.randn(shape, generator=draw, dtype=dtype)) for shape in ((5, 4), (7,))]
    return parameters, [torch.randn(p.shape, generator=draw, dtype=dtype) for p in parameters]


def gradient(p: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    return (p - minimum) * torch.linspace(0.1, 2, p.numel(), dtype=p.dtype).view(p.shape)


def descend(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], minima: list[torch.Tensor], steps: int = STEPS
) -> None:
    for _ in range(steps):
        for p, minimum in zip(parameters, minima, strict=True):
            p.grad = gradient(p.detach(), minimum)
        optimizer.step()


def ours(config: OptimizerConfig) -> list[torch.Tensor]:
    parameters, minima = quadratic()
    optimizer = optimizers.build(config, [(parameters, config.peak)])
    descend(optimizer, parameters, minima)
    return [p.detach() for p in parameters]


def by_hand(update) -> list[np.ndarray]:
    """``update(t, p, g, memory) -> p`` in numpy, t from 1."""
    out = []
    for parameter, minimum in zip(*quadratic(), strict=True):
        p, memory = parameter.detach().numpy().copy(), {}
        for t in range(1, STEPS + 1):
            p = update(t, p, gradient(torch.from_numpy(p), minimum).numpy(), memory)
        out.append(p)
    return out


def same(weights, expected, rtol: float = 1e-9) -> bool:
    start, _ = quadratic()
    moved = [not np.allclose(w, s.detach(), rtol=1e-3) for w, s in zip(weights, start, strict=True)]
    return all(moved) and all(np.allclose(w, e, rtol=rtol, atol=rtol) for w, e in zip(weights, expected, strict=True))


def theirs(make) -> list[np.ndarray]:
    parameters, minima = quadratic()
    descend(make(parameters), parameters, minima)
    return [p.detach().numpy() for p in parameters]


def test_adamw_is_torchs():
    config = OptimizerConfig("AdamW", 0.05, 0.1, optimizer_args="betas=0.8,0.95 eps=1e-6")
    plain = theirs(lambda p: torch.optim.AdamW(p, 0.05, (0.8, 0.95), 1e-6, 0.1, foreach=False, fused=False))
    assert same(ours(config), plain)


def test_sgd_by_hand():
    """v = 0.9 v + g + l p; p = p - r v."""

    def update(t, p, g, memory):
        memory["v"] = 0.9 * memory.get("v", 0) + g + 0.1 * p
        return p - 0.02 * memory["v"]

    assert same(ours(OptimizerConfig("SGD", 0.02, 0.1)), by_hand(update))


def test_lion_by_hand():
    """Chen et al. 2023, algorithm 2: p = p - r (sign(b1 m + (1 - b1) g) + l p); m = b2 m + (1 - b2) g."""
    pytest.importorskip("pytorch_optimizer")

    def update(t, p, g, memory):
        m = memory.get("m", np.zeros_like(p))
        memory["m"] = 0.99 * m + 0.01 * g
        return p - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * p)

    assert same(ours(OptimizerConfig("Lion", 0.01, 0.1)), by_hand(update))


def test_came_by_hand():
    """Luo et al. 2023, algorithm 2; a vector keeps a full second moment and no confidence, as in the authors' code."""
    pytest.importorskip("pytorch_optimizer")
    b1, b2, b3, rate, decay = 0.9, 0.999, 0.9999, 0.03, 0.1

    def factored(row, column):
        return 1 / np.sqrt(row[:, None] * column[None, :] / row.mean())

    def ema(memory, key, new, b):
        memory[key] = b * memory.get(key, 0) + (1 - b) * new
        return memory[key]

    def update(t, p, g, memory):
        square = g**2 + 1e-30
        if p.ndim == 2:
            u = g * factored(ema(memory, "r", square.mean(1), b2), ema(memory, "c", square.mean(0), b2))
        else:
            u = g / np.sqrt(ema(memory, "v", square, b2))
        u = u / max(1, np.sqrt((u**2).mean()))
        m = ema(memory, "m", u, b1)
        step = m
        if p.ndim == 2:
            res = (u - m) ** 2 + 1e-16
            step = m * factored(ema(memory, "R", res.mean(1), b3), ema(memory, "C", res.mean(0), b3))
        return p * (1 - decay * rate) - rate * step

    assert same(ours(OptimizerConfig("CAME", rate, decay)), by_hand(update), rtol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ("scale_parameter=False relative_step=False warmup_init=False", {"scale_parameter": False, "relative_step": False}),
        ("", {"scale_parameter": False, "relative_step": False}),
        ("scale_parameter=True", {"scale_parameter": True, "relative_step": False}),
        (
            "relative_step=True scale_parameter=True warmup_init=True",
            {"scale_parameter": True, "relative_step": True, "warmup_init": True},
        ),
        ("relative_step=True", {"scale_parameter": False, "relative_step": True}),
    ],
)
def test_adafactor_has_the_weights_of_another_implementation(arguments, settings):
    library = pytest.importorskip("pytorch_optimizer")
    config = OptimizerConfig("Adafactor", 0.05, 0.1, schedule="constant", optimizer_args=arguments)
    lr = None if settings["relative_step"] else 0.05
    other = theirs(lambda p: library.AdaFactor(p, lr=lr, betas=(None, 0.999), weight_decay=0.1, **settings))
    weights = ours(config)
    assert all(np.allclose(w, e, rtol=1e-6, atol=1e-9) for w, e in zip(weights, other, strict=True))
    assert not any(np.array_equal(w, s.detach()) for w, s in zip(weights, quadratic()[0], strict=True))


def test_adafactors_own_rate_by_hand():
    """Shazeer & Stern 2018: max(eps2, RMS(p)) * min(1e-6 t, 1 / sqrt(t)), RMS before the step."""
    config = OptimizerConfig(
        "Adafactor", 1, schedule="constant", optimizer_args="relative_step=True scale_parameter=True warmup_init=True"
    )
    parameters, minima = quadratic()
    optimizer = optimizers.build(config, [(parameters, config.peak)])
    for t in range(1, 5):
        before = parameters[0].detach().square().mean().sqrt().item()
        optimizers.set_rate(optimizer, 1.0)
        found = optimizers.used_rate(optimizer, 1.0)
        descend(optimizer, parameters, minima, 1)
        assert found == pytest.approx(before * 1e-6 * t, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (
            "weight_decay=0.01 decouple=True d0=0.0001 use_bias_correction=True",
            {"weight_decay": 0.01, "d0": 1e-4, "bias_correction": True},
        ),
        ("use_bias_correction=False d_coef=0.8", {"weight_decay": 0.1, "d_coef": 0.8}),
        ("", {"weight_decay": 0.1, "bias_correction": True}),
    ],
)
def test_prodigy_has_the_weights_of_another_implementation(arguments, settings):
    pytest.importorskip("prodigyopt")
    library = pytest.importorskip("pytorch_optimizer")
    config = OptimizerConfig("Prodigy", 1, 0.1, optimizer_args=arguments)
    assert same(ours(config), theirs(lambda p: library.Prodigy(p, **settings)), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "decouple"),
    [
        ("DAdaptAdam", "decouple=True weight_decay=0.01 betas=0.9,0.999", True),
        ("DAdaptAdam", "weight_decay=0.01", False),
        ("DAdaptAdamW", "weight_decay=0.01", True),
    ],
)
def test_d_adaptation_has_the_weights_of_another_implementation(name, arguments, decouple):
    """From a large first estimate: with the default, 25 steps would hardly move anything."""
    pytest.importorskip("dadaptation")
    library = pytest.importorskip("pytorch_optimizer")
    config = OptimizerConfig(name, 1, optimizer_args=f"{arguments} d0=0.01")
    other = theirs(lambda p: library.DAdaptAdam(p, weight_decay=0.01, weight_decouple=decouple, d0=0.01))
    assert same(ours(config), other, rtol=1e-5)


def schedule_free(rate: float, b1: float, b2: float, decay: float, warmup: int = 0):
    """Defazio et al. 2024, algorithm 1: z walks, x averages, the gradient is taken at y between them."""

    def update(t, y, g, memory):
        z, x = memory.setdefault("z", y), memory.setdefault("x", y)
        memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
        now = rate * min(1, t / warmup) if warmup else rate
        z = z - now * (g / (np.sqrt(memory["v"] / (1 - b2**t)) + 1e-8) + decay * y)
        memory["sum"] = memory.get("sum", 0) + now**2
        c = now**2 / memory["sum"]
        x = (1 - c) * x + c * z
        memory["z"], memory["x"] = z, x
        return (1 - b1) * z + b1 * x

    return update


@pytest.mark.parametrize("warmup", [0, 6])
def test_schedule_free_by_hand(warmup):
    pytest.importorskip("schedulefree")
    config = OptimizerConfig("AdamWScheduleFree", 0.03, 0.1, schedule="constant", optimizer_args="betas=0.9,0.99")
    parameters, minima = quadratic()
    optimizer = optimizers.build(config, [(parameters, config.peak)])
    for t in range(1, STEPS + 1):
        optimizers.set_rate(optimizer, min(1, t / warmup) if warmup else 1.0)
        descend(optimizer, parameters, minima, 1)
    averages = []
    update = schedule_free(0.03, 0.9, 0.99, 0.1, warmup)

    def keeping(t, y, g, memory):
        y = update(t, y, g, memory)
        if t == STEPS:
            averages.append(memory["x"])
        return y

    y = by_hand(keeping)
    assert same([p.detach() for p in parameters], y)
    before = [p.detach().clone() for p in parameters]
    with optimizers.averaged(optimizer):
        assert same([p.detach() for p in parameters], averages)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


PLUS = {
    "": {},
    "factored=False": {"factored": False},
    "eps=none beta3=0.9": {"eps": None, "beta3": 0.9},
    "use_schedulefree=False use_stableadamw=False": {"use_schedulefree": False, "use_stableadamw": False},
    "use_speed=True weight_decay=0": {"use_speed": True, "weight_decay": 0.0},
}


@pytest.mark.parametrize("arguments", PLUS)
def test_prodigy_plus_has_the_weights_of_its_package(arguments, capsys):
    """A matrix with a long side among them, whose second moment is factored."""
    library = pytest.importorskip("prodigyplus")
    config = OptimizerConfig(
        "ProdigyPlusScheduleFree", 1.0, 0.1, schedule="constant", optimizer_args=f"{arguments} d0=0.001 betas=0.9,0.99"
    )
    settings = {"weight_decay": 0.1, "d0": 0.001, "betas": (0.9, 0.99), "split_groups": False, **PLUS[arguments]}
    ends = []
    for make in (
        lambda p: optimizers.build(config, [(p, 1.0)]),
        lambda p: library.ProdigyPlusScheduleFree(p, **settings),
    ):
        parameters, minima = quadratic(torch.float32)
        draw = torch.Generator().manual_seed(5)
        parameters.append(nn.Parameter(torch.randn(40, 3, generator=draw)))
        minima.append(torch.zeros(40, 3))
        optimizer = make(parameters)
        descend(optimizer, parameters, minima)
        assert optimizers.used_rate(optimizer, 0.5) == 0.5 * optimizer.param_groups[0]["d"] > 0.0005
        with optimizers.averaged(optimizer):
            ends.append([p.detach().clone() for p in parameters])
        ends.append([p.detach().clone() for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(ends[0] + ends[1], ends[2] + ends[3], strict=True))
    start, _ = quadratic(torch.float32)
    assert not any(torch.equal(a, b) for a, b in zip(ends[0], start, strict=False))
    assert ("disabled" in capsys.readouterr().out) == ("none" in arguments), "what it was told by itself is not printed"


def test_prodigy_plus_saves_what_schedule_free_averages():
    """Defazio et al. 2024: the gradient is taken at y = (1 - b1) z + b1 x, and x is what is saved."""
    pytest.importorskip("prodigyplus")
    config = OptimizerConfig("ProdigyPlusScheduleFree", 1.0, schedule="constant", optimizer_args="d0=0.01 betas=0.8,0.99")
    parameters, minima = quadratic(torch.float32)
    optimizer = optimizers.build(config, [(parameters, 1.0)])
    descend(optimizer, parameters, minima)
    averages = [(p.detach() - 0.2 * optimizer.state[p]["z"]) / 0.8 for p in parameters]
    with optimizers.averaged(optimizer):
        assert all(torch.allclose(p, x, atol=1e-6) for p, x in zip(parameters, averages, strict=True))
        assert not any(torch.allclose(p, optimizer.state[p]["z"], atol=1e-4) for p in parameters)
    with pytest.raises(AtelierError, match="ProdigyPlusScheduleFree averages the weights"):
        OptimizerConfig("ProdigyPlusScheduleFree", 1.0)
    with pytest.raises(AtelierError, match="finds the rate itself"):
        OptimizerConfig("ProdigyPlusScheduleFree", schedule="constant")
    assert config.clip_norm == 0
    assert OptimizerConfig("ProdigyPlusScheduleFree", 1.0, optimizer_args="use_schedulefree=false").schedule == "cosine"


def test_prodigy_plus_finds_a_rate_for_each_part():
    pytest.importorskip("prodigyplus")
    (a, b), minima = quadratic(torch.float32)
    config = OptimizerConfig("ProdigyPlusScheduleFree", 1, schedule="constant", optimizer_args="d0=0.001")
    assert not any("ratios" in note for note in optimizers.notes(config, (1.0, 0.5)))
    optimizer = optimizers.build(config, [([a], 1.0), ([b], 0.5)])
    descend(optimizer, [a, b], [minima[0], 100 + minima[1]])
    first, second = (group["d"] for group in optimizer.param_groups)
    assert first != second
    together = OptimizerConfig("ProdigyPlusScheduleFree", 1, schedule="constant", optimizer_args="split_groups=False")
    assert any("ratios" in note for note in optimizers.notes(together, (1.0, 0.5)))
    mean = OptimizerConfig("ProdigyPlusScheduleFree", 1, schedule="constant", optimizer_args="split_groups_mean=True d0=0.001")
    (a, b), minima = quadratic(torch.float32)
    optimizer = optimizers.build(mean, [([a], 1.0), ([b], 0.5)])
    descend(optimizer, [a, b], [minima[0], 100 + minima[1]])
    one, other = (group["d"] for group in optimizer.param_groups)
    assert optimizers.used_rate(optimizer, 0.5) == pytest.approx(0.5 * 2 / (1 / one + 1 / other))


def shapes_for_muon() -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    """Both halves of a LoRA, a convolution's kernel, and what is no matrix: a vector, a column, a row."""
    draw = torch.Generator().manual_seed(7)
    shapes = ((4, 30), (20, 4), (4, 3, 3, 3), (7,), (20, 1), (1, 30))
    parameters = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    return parameters, [torch.randn(p.shape, generator=draw) for p in parameters]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_muon_is_torchs_for_matrices_and_adamw_for_the_rest():
    """Matrices against torch.optim.Muon with the scale of Liu et al. 2025, which a convolution's kernel enters as a matrix of its
    outputs' rows (Jordan 2024). Both compute the iteration in bf16."""
    pytest.importorskip("pytorch_optimizer")
    parameters, minima = shapes_for_muon()
    descend(optimizers.build(OptimizerConfig("Muon", 0.01, 0.1), [(parameters, 0.01)]), parameters, minima, 8)

    expected, _ = shapes_for_muon()
    settings = {"momentum": 0.95, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    plain = [nn.Parameter(p.detach().flatten(1)) for p in expected[:3]]
    muon = torch.optim.Muon(plain, 0.01, **settings)
    adamw = torch.optim.AdamW(expected[3:], 0.01, (0.9, 0.95), 1e-10, 0.1)
    descend(muon, plain, [m.flatten(1) for m in minima[:3]], 8)
    descend(adamw, expected[3:], minima[3:], 8)
    start, _ = shapes_for_muon()
    for p, wanted, began in zip(parameters, [*plain, *expected[3:]], start, strict=True):
        assert torch.allclose(p.detach().view(wanted.shape), wanted, rtol=2e-3, atol=2e-4)
        assert not torch.allclose(p, began, atol=1e-2)


def test_a_step_of_muon_by_hand():
    """Jordan 2024: five times X = a X + (b A + c A^2) X with A = X X^T, from X = G / |G|; Liu et al. 2025: times
    0.2 sqrt(max(rows, columns)), which makes it as large as a step of AdamW. The first step's momentum only scales G."""
    pytest.importorskip("pytorch_optimizer")
    draw = torch.Generator().manual_seed(9)
    p, gradient = nn.Parameter(torch.zeros(6, 24)), torch.randn(6, 24, generator=draw)
    optimizer = optimizers.build(OptimizerConfig("Muon", 0.01, 0.0), [([p], 0.01)])
    p.grad = gradient.clone()
    optimizer.step()
    x = gradient.double().numpy() / np.linalg.norm(gradient.numpy())
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    assert np.allclose(p.detach().numpy(), -0.01 * 0.2 * np.sqrt(24) * x, rtol=0.05, atol=2e-4)
    assert p.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.25), "the paper's RMS of 0.2"


def test_muon_takes_matrices_and_vectors_at_their_parts_rates():
    pytest.importorskip("pytorch_optimizer")
    parameters, _ = shapes_for_muon()
    optimizer = optimizers.build(OptimizerConfig("Muon", 0.1, 0.2), [(parameters[:2], 0.1), (parameters[2:], 0.02)])
    optimizers.set_rate(optimizer, 0.5)
    found = [(group["use_muon"], group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert found == [(True, 0.05, 0.2, 2), (True, 0.01, 0.2, 1), (False, 0.01, 0.2, 3)]


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "ProdigyPlusScheduleFree"])
def test_saving_in_between_changes_no_training(name):
    pytest.importorskip("schedulefree" if name == "AdamWScheduleFree" else "prodigyplus")
    config = OptimizerConfig(name, 0.03, schedule="constant")
    results = []
    for saving in (False, True):
        parameters, minima = quadratic(torch.float32)
        optimizer = optimizers.build(config, [(parameters, config.peak)])
        for _ in range(STEPS):
            descend(optimizer, parameters, minima, 1)
            if saving:
                with pytest.raises(KeyboardInterrupt), optimizers.averaged(optimizer):
                    raise KeyboardInterrupt
        results.append(parameters)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_other_optimizers_are_saved_as_they_are():
    parameters, minima = quadratic()
    optimizer = optimizers.build(OptimizerConfig(), [(parameters, 0.1)])
    descend(optimizer, parameters, minima)
    before = [p.detach().clone() for p in parameters]
    with optimizers.averaged(optimizer):
        assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_eight_bit_names_its_twin():
    parameters, _ = quadratic()
    for name, twin in (("AdamW8bit", "AdamW"), ("Lion8bit", "Lion")):
        with pytest.raises(AtelierError, match=rf"{name} .*{twin}, its full-precision twin"):
            optimizers.build(OptimizerConfig(name), [(parameters, 1e-4)])
        with pytest.raises(AtelierError, match=f"{twin}, its full-precision twin"):
            optimizers.check(OptimizerConfig(name), "cpu")
    optimizers.check(OptimizerConfig("AdamW"), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="8-bit kernels run on CUDA only")
@pytest.mark.parametrize(("eight", "full"), [("AdamW8bit", "AdamW"), ("Lion8bit", "Lion")])
def test_eight_bit_stays_near_its_twin(eight, full):
    pytest.importorskip("bitsandbytes")
    if full == "Lion":
        pytest.importorskip("pytorch_optimizer")
    ends = []
    for name in (eight, full):
        draw = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(128, 64, generator=draw).cuda())
        optimizer = optimizers.build(OptimizerConfig(name, 0.02), [([p], 0.02)])
        for _ in range(20):
            p.grad = p.detach().clone()
            optimizer.step()
        ends.append(p.detach().square().mean().item())
    assert ends[0] == pytest.approx(ends[1], abs=0.02)


@pytest.mark.parametrize("name", sorted(name for name, source in optimizers.SOURCES.items() if source.package))
def test_a_missing_package_is_named_with_its_twin(name, monkeypatch):
    source = optimizers.SOURCES[name]
    monkeypatch.setitem(sys.modules, source.module, None)  # Python's own way to say that there is no such module
    rate = 1.0 if OptimizerConfig(name, 1, schedule="constant").adaptive else 1e-4
    with pytest.raises(AtelierError) as caught:
        optimizers.check(OptimizerConfig(name, rate, schedule="constant"))
    package = re.split("[>=]", source.package)[0]
    assert f"{name} needs the package {package}" in str(caught.value)
    assert f"or choose {source.instead}" in str(caught.value)
    assert "AdamW" in source.instead or "Adafactor" in source.instead


def test_parts_keep_their_own_rates():
    (a, b), minima = quadratic()
    optimizer = optimizers.build(OptimizerConfig("SGD", 0.1, 0), [([a], 0.1), ([b], 0.02)])
    optimizers.set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.01]
    before = [p.detach().clone() for p in (a, b)]
    steps = [gradient(p, m) for p, m in zip(before, minima, strict=True)]
    descend(optimizer, [a, b], minima, 1)
    assert torch.allclose(a, before[0] - 0.05 * steps[0])
    assert torch.allclose(b, before[1] - 0.01 * steps[1])


def test_a_part_with_rate_zero_is_not_trained():
    (a, b), minima = quadratic()
    before = b.detach().clone()
    descend(optimizers.build(OptimizerConfig("AdamW", 0.1, 0.5), [([a], 0.1), ([b], 0.0)]), [a, b], minima, 2)
    assert torch.equal(b, before)
    with pytest.raises(AtelierError, match="every part"):
        optimizers.build(OptimizerConfig(), [([a], 0.0), ([], 1.0)])


def test_d_adaptation_takes_rates_as_ratios():
    pytest.importorskip("dadaptation")
    (a, b), minima = quadratic()
    optimizer = optimizers.build(OptimizerConfig("DAdaptAdam", 1, 0, optimizer_args="d0=0.01"), [([a], 1.0), ([b], 0.25)])
    optimizers.set_rate(optimizer, 0.5)
    descend(optimizer, [a, b], minima, 1)
    # The first step is r d lr (1 - b1) g / (sqrt(1 - b2) |g|): its size shows the group's rate.
    start, _ = quadratic()
    size = [(p - s).abs().median().item() for p, s in zip((a, b), start, strict=True)]
    assert size == pytest.approx([x * 0.01 * 0.5 * 0.1 / 0.001**0.5 for x in (1, 0.25)], rel=1e-3)


def test_prodigy_refuses_different_rates_and_shows_its_estimate():
    pytest.importorskip("prodigyopt")
    (a, b), minima = quadratic()
    config = OptimizerConfig("Prodigy", 1, optimizer_args="d0=0.001")
    with pytest.raises(AtelierError, match="Give every part the same"):
        optimizers.build(config, [([a], 1.0), ([b], 0.5)])
    optimizer = optimizers.build(config, [([a], 1.0), ([b], 1.0)])
    assert optimizers.used_rate(optimizer, 1.0) == 0.001
    descend(optimizer, [a, b], minima)
    assert optimizers.used_rate(optimizer, 0.5) == 0.5 * optimizer.param_groups[0]["d"] > 0.001


def test_prodigy_is_guarded_during_warmup():
    pytest.importorskip("prodigyopt")
    for config, guarded in (
        (OptimizerConfig("Prodigy", 1), False),
        (OptimizerConfig("Prodigy", 1, warmup_steps=3), True),
        (OptimizerConfig("Prodigy", 1, warmup_share=0.1), True),
        (OptimizerConfig("Prodigy", 1, warmup_steps=3, optimizer_args="safeguard_warmup=False"), False),
    ):
        optimizer = optimizers.build(config, [(quadratic()[0], 1.0)])
        assert optimizer.param_groups[0]["safeguard_warmup"] is guarded
        assert any("safeguard" in note for note in optimizers.notes(config)) is guarded


def lora_problem(make, warmup: int, steps: int) -> tuple[list[float], float]:
    """d after every step, and the share of the change that is still missing at the end, of a rank-4 LoRA that learns a small
    change of a layer from noisy targets; ``make`` gives an optimizer of its two factors, whose rate rises over ``warmup``."""
    stream = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=stream)

    change = normal(64, 3) @ normal(3, 64) * 0.05
    down, up = torch.nn.Parameter(normal(4, 64) / 14), torch.nn.Parameter(torch.zeros(64, 4))
    optimizer, found = make([down, up]), []
    for step in range(steps):
        x = normal(4, 64)
        loss = (x @ (up @ down - change).T + 0.5 * normal(4, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([down, up], 1.0)
        optimizers.set_rate(optimizer, min(1.0, (step + 1) / warmup) if warmup else 1.0)
        optimizer.step()
        found.append(optimizer.param_groups[0]["d"])
    with torch.no_grad():
        return found, ((up @ down - change).square().mean() / change.square().mean()).item()


@pytest.mark.parametrize(("name", "module"), [("Prodigy", "prodigyopt"), ("DAdaptAdam", "dadaptation")])
def test_a_warmup_does_not_keep_a_rate_that_is_found_from_being_found(name, module):
    """The library's own settings, safeguarded as its README asks for, learn nothing in 150 steps of which 60 warm up."""
    library = getattr(pytest.importorskip(module), name)
    config = OptimizerConfig(name, 1.0, warmup_steps=60)
    ours, left = lora_problem(lambda p: optimizers.build(config, [(p, 1.0)]), 60, 150)
    assert min(ours) >= 1e-4 and ours[-1] > 3e-4
    if name == "Prodigy":

        def theirs(p):
            groups = [{"params": p, "initial_lr": 1.0}]
            return library(groups, lr=1.0, use_bias_correction=True, safeguard_warmup=True, weight_decay=0.01)

        starved, missing = lora_problem(theirs, 60, 150)
        assert starved[59] == 1e-6 and starved[-1] < 1e-4 and missing > 0.95 and left < 0.8
    plain, _ = lora_problem(lambda p: optimizers.build(OptimizerConfig(name, 1.0), [(p, 1.0)]), 0, 2)
    assert plain[0] < 1e-5, "without a warmup the library's own beginning stays"


def test_settings_for_a_warmup_are_the_librarys_own_ones_by_name_and_are_said():
    library = pytest.importorskip("prodigyopt")
    config = OptimizerConfig("Prodigy", 1.0, warmup_share=0.1)
    settings = {"safeguard_warmup": True, "betas": (0.9, 0.99), "d0": 1e-4, "use_bias_correction": True, "weight_decay": 0.01}
    built = optimizers.build(config, [(quadratic()[0], 1.0)]).param_groups[0]
    expected = library.Prodigy(quadratic()[0], lr=1.0, **settings).param_groups[0]
    assert {k: v for k, v in built.items() if k in expected and k != "params"} == {
        k: v for k, v in expected.items() if k != "params"
    }
    (said,) = optimizers.notes(config)
    assert "because of the warmup Prodigy runs with safeguard_warmup=True betas=0.9,0.99 d0=0.0001" in said
    assert "d0=0.0001" in optimizers.title(config) and "safeguard_warmup=True" in optimizers.title(config)
    own = OptimizerConfig("Prodigy", 1.0, warmup_steps=9, optimizer_args="betas=0.9,0.999 d0=1e-6 safeguard_warmup=false")
    group = optimizers.build(own, [(quadratic()[0], 1.0)]).param_groups[0]
    assert (group["betas"], group["d0"], group["safeguard_warmup"]) == ((0.9, 0.999), 1e-6, False)
    assert optimizers.notes(own) == [
        "optimizer arguments: with a warmup d0=1e-06 keeps Prodigy from learning for as long as that lasts."
    ]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (OptimizerConfig(optimizer_args="betas=0.9,1.5"), "AdamW refuses them: Invalid beta"),
        (OptimizerConfig(optimizer_args="foreach=true fused=true"), "AdamW refuses them"),
        (OptimizerConfig("SGD", optimizer_args="nesterov=true momentum=0"), "SGD refuses them"),
        (OptimizerConfig("AdamW", optimizer_args="decouple=True"), "AdamW has no 'decouple'; it takes lr, betas"),
        (
            OptimizerConfig("AdamWScheduleFree", schedule="constant", optimizer_args="betas=0,0.9"),
            "needs a first beta above 0",
        ),
        (OptimizerConfig("AdamWScheduleFree", schedule="constant", optimizer_args="warmup_steps=9"), "has no 'warmup_steps'"),
        (
            OptimizerConfig("ProdigyPlusScheduleFree", 1, schedule="constant", optimizer_args="betas=0,0.9"),
            "needs a first beta above 0",
        ),
        (
            OptimizerConfig("ProdigyPlusScheduleFree", 1, schedule="constant", optimizer_args="fused_back_pass=true"),
            "has no 'fused_back_pass'",
        ),
        (OptimizerConfig("Muon", optimizer_args="adamw_lr=1e-4"), "Muon has no 'adamw_lr'"),
        (OptimizerConfig("Muon", optimizer_args="momentum=2"), "Muon refuses them"),
    ],
)
def test_wrong_arguments_are_said_before_training(config, said):
    with pytest.raises(AtelierError) as caught:
        optimizers.build(config, [(quadratic()[0], config.peak)])
    assert said in str(caught.value)


def test_what_wins_over_a_widget_is_reported():
    config = OptimizerConfig("AdamW", 1e-4, 0.1, optimizer_args="lr=1e-3 weight_decay=0.01")
    assert (config.peak, config.decay) == (1e-3, 0.01)
    optimizer = optimizers.build(config, [(quadratic()[0], config.peak)])
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (1e-3, 0.01)
    assert optimizers.notes(config) == [
        "learning rate: 0.001 from the optimizer arguments is used, not 0.0001.",
        "weight decay: 0.01 from the optimizer arguments is used, not 0.1.",
    ]
    assert optimizers.notes(OptimizerConfig()) == []
    assert "ratios" in optimizers.notes(OptimizerConfig("DAdaptAdam", 1), (1.0, 0.5))[0]


def test_adafactor_with_its_own_rate_does_not_clip():
    config = OptimizerConfig("Adafactor", 1, max_grad_norm=1.0, schedule="constant", optimizer_args="relative_step=True")
    assert config.clip_norm == 0
    assert [note.split(":")[0] for note in optimizers.notes(config)] == ["learning rate", "gradient clipping"]
    assert OptimizerConfig("Adafactor").clip_norm == 1.0


def test_titles_for_the_metadata():
    assert optimizers.title(OptimizerConfig()) == "torch.optim.AdamW(weight_decay=0.01)"
    config = OptimizerConfig("DAdaptAdamW", 1, optimizer_args="lr=0.9 betas=0.9,0.99")
    assert optimizers.title(config) == "dadaptation.DAdaptAdam(decouple=True, weight_decay=0.01, betas=0.9,0.99)"
