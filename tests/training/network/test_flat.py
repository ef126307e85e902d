"""Parameters in one tensor: the same adapter, the same gradients, in every algorithm and number format."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.flat import ALIGNMENT
from torch import nn

NETWORKS = {
    "LoRA": NetworkConfig(4, 4.0),
    "scaled": NetworkConfig(4, 1.0),
    "LoRA+": NetworkConfig(3, 6.0, lora_plus_ratio=8.0),
    "DoRA": NetworkConfig(4, 2.0, weight_decompose=True),
    "LoHa": NetworkConfig(2, 1.0, algorithm="LoHa"),
    "LoKr": NetworkConfig(2, 1.0, algorithm="LoKr", lokr_factor=2),
    "rules": NetworkConfig(4, 2.0, rules="*to_v rank=2 rate=0.5"),
}


def layers_of() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    made = {
        "a.to_q": nn.Linear(16, 16), "a.to_k": nn.Linear(16, 16, bias=False), "a.to_v": nn.Linear(16, 16),
        "a.out": nn.Linear(16, 16), "conv": nn.Conv2d(3, 5, 3, padding=1), "b.to_k": nn.Linear(6, 8),
    }  # fmt: skip
    return {name: layer.requires_grad_(False) for name, layer in made.items()}


def moved(adapter: Adapter) -> Adapter:
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=stream)
    return adapter


def loss_of(layers: dict[str, nn.Module], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.linspace(-1, 1, 5 * 16).view(5, 16).to(dtype)
    q, k, v = (layers[f"a.{name}"](x) for name in ("to_q", "to_k", "to_v"))
    out = layers["a.out"](torch.tanh(q * k) + v)
    seen = layers["conv"](torch.linspace(0, 1, 2 * 3 * 16).view(2, 3, 4, 4).to(dtype)).sin()
    text = layers["b.to_k"](torch.linspace(-2, 1, 18).view(3, 6).to(dtype)).cos()
    return out.float().square().mean() + seen.float().square().mean() + text.float().mean()


@pytest.mark.parametrize("name", NETWORKS)
def test_its_gradient_is_that_of_the_parameters_by_themselves(name):
    layers = layers_of()
    plain = moved(Adapter.fresh(layers, NETWORKS[name], 0))
    with plain.attached(layers):
        wanted = dict(zip(plain.state(), torch.autograd.grad(loss_of(layers), list(plain.parameters())), strict=True))
    adapter = moved(Adapter.fresh(layers, NETWORKS[name], 0))
    before = {key: value.clone() for key, value in adapter.state().items()}
    flat = adapter.flatten(torch.float32)
    assert all(torch.equal(value, before[key]) for key, value in adapter.state().items())
    for batch in (1, 2):  # what a second batch finds is added
        with adapter.attached(layers):
            flat.begin()
            loss_of(layers).backward()
            flat.collect()
        found = flat.named(flat.gradient)
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[key], batch * wanted[key], rtol=1e-4, atol=1e-7) for key in wanted)
    assert all(torch.equal(value, before[key]) for key, value in adapter.state().items()), "training alone moves weights"
    assert all(parameter.grad is None for parameter in adapter.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_in_half_precision_it_is_right_to_rounding(name, dtype):
    layers = {key: layer.to(dtype) for key, layer in layers_of().items()}
    adapter = moved(Adapter.fresh(layers, NETWORKS[name], 0))
    flat = adapter.flatten(dtype)
    with adapter.attached(layers):
        flat.begin()
        loss_of(layers, dtype).backward()
        flat.collect()
    single = {key: layer.float() for key, layer in layers_of().items()}
    exact = moved(Adapter.fresh(single, NETWORKS[name], 0))
    with exact.attached(single):
        wanted = dict(zip(exact.state(), torch.autograd.grad(loss_of(single), list(exact.parameters())), strict=True))
    found = flat.named(flat.gradient)
    far = torch.stack([(found[key] - wanted[key]).norm() for key in wanted]).norm()
    assert far <= 0.03 * torch.stack([gradient.norm() for gradient in wanted.values()]).norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_each_matrix_has_a_place_of_its_own(name):
    adapter = Adapter.fresh(layers_of(), NETWORKS[name], 0)
    flat = adapter.flatten(torch.float32)
    rows = sorted(flat.slots.values(), key=lambda slot: slot.start)
    assert all(slot.start % ALIGNMENT == 0 for slot in rows)
    assert all(a.end <= b.start for a, b in pairwise(rows))
    assert sum(slot.shape.numel() for slot in rows) == adapter.parameter_count()
    flat.weights.copy_(torch.arange(len(flat.weights)))
    for (layer, part), slot in flat.slots.items():
        assert adapter.branches[layer].get_parameter(part).flatten()[0] == slot.start, "a Parameter is a view of the whole"
    begins = [begin for begin, _ in flat.bounds]
    assert begins[0] == 0 and sum(size for _, size in flat.bounds) == len(flat.weights)


def test_a_step_that_failed_leaves_the_gradient_of_the_batches_before():
    layers = layers_of()
    adapter = moved(Adapter.fresh(layers, NETWORKS["scaled"], 0))
    flat = adapter.flatten(torch.float32)
    assert flat.kept() is None
    with adapter.attached(layers):
        flat.begin()
        loss_of(layers).backward()
        flat.collect()
        kept = flat.kept()
        assert kept is not None
        flat.begin()
        loss_of(layers).backward()  # and then memory runs out
        flat.restore(kept)
        assert torch.equal(flat.gradient, kept)
        flat.begin()
        loss_of(layers).backward()
        flat.collect()
    assert torch.allclose(flat.gradient, 2 * kept)
    flat.restore(None)
    assert not flat.gradient.any() and flat.is_empty


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=5), scale=st.sampled_from([0.25, 1.0, 3.0]),
    limit=st.floats(0.05, 5.0), data=st.data(),
)  # fmt: skip
def test_norms_are_limited_as_one_by_one(ranks, scale, limit, data):
    """Against the matrices themselves, whatever ranks and sizes lie side by side."""
    layers: dict[str, nn.Module] = {}
    for i in range(len(ranks)):
        sides = [data.draw(st.sampled_from([3, 4, 8])) for _ in range(2)]
        layers[f"l{i}"] = nn.Conv2d(*sides, 3) if data.draw(st.booleans()) else nn.Linear(*sides)
    rules = "\n".join(f"l{i} rank={rank} alpha={rank * scale}" for i, rank in enumerate(ranks))
    adapter = moved(Adapter.fresh(layers, NetworkConfig(4, 4.0, rules=rules, include="*"), 0))
    before = {name: branch.delta_weight().detach().clone() for name, branch in adapter.branches.items()}
    adapter.flatten(torch.float32)
    adapter.limit_norms(limit)
    for name, branch in adapter.branches.items():
        norm = before[name].norm()
        wanted = before[name] * min(1.0, limit / float(norm))
        assert torch.allclose(branch.delta_weight(), wanted, rtol=1e-3, atol=1e-5)
