"""Layer and branch as one step of autograd: the same numbers, less kept, and only where the layer is what it seems."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.network import base_layer, frozen_product, fused_linear
from lora_atelier.training.network.adapter import Adapter
from torch import nn

from ..conftest import FAMILIES
from ..host.test_host import latents, levels, new_adapter, one_loss
from .support import trained


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), inputs=st.integers(1, 6), outputs=st.integers(1, 6),
    rank=st.integers(1, 4), scale=st.sampled_from([0.5, 1.0, -2.0]), bias=st.booleans(), needed=st.booleans(),
)  # fmt: skip
def test_numbers_and_gradients_are_those_of_the_formula(shape, inputs, outputs, rank, scale, bias, needed):
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.double).requires_grad_(False)
    x = torch.randn(*shape, inputs, dtype=torch.double, requires_grad=needed)
    down = torch.randn(rank, inputs, dtype=torch.double, requires_grad=True)
    up = torch.randn(outputs, rank, dtype=torch.double, requires_grad=True)
    wanted = F.linear(x, layer.weight + scale * up @ down, layer.bias)
    assert torch.allclose(fused_linear.linear(layer, x, down, up, scale), wanted)
    assert torch.autograd.gradcheck(lambda *a: fused_linear.linear(layer, *a, scale), (x, down, up))


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scales", ["a row", "all", "all, as a number"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_with_a_scale_beside_it(stored, scales, bias):
    """In float32 against autograd through the weight that they stand for."""
    torch.manual_seed(0)
    layers: Any = [nn.Linear(6, 4, bias=bias).requires_grad_(False) for _ in range(2)]
    meant = []
    for layer in layers:
        numbers = (layer.weight * 100).round().to(stored)
        scale = {"a row": torch.rand(4, 1), "all": torch.rand(1), "all, as a number": torch.rand(())}[scales] + 0.1
        layer.weight = nn.Parameter(numbers, requires_grad=False)
        layer.register_buffer("scale_weight", scale)
        meant.append(numbers.float() * scale)
    x = torch.randn(2, 3, 6, requires_grad=True)
    assert all(fused_linear.plain(layer, x) for layer in layers)
    down, up = torch.randn(4, 6, requires_grad=True), torch.randn(2, 4, 2, requires_grad=True)

    def gradients(outs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(sum(out.sin().sum() for out in outs), (x, down, up))

    parts = list(zip(layers, meant, down.split(2), up, strict=True))
    right = [F.linear(x, weight + u @ d, layer.bias) for layer, weight, d, u in parts]
    wanted = gradients(right)
    alone = [fused_linear.linear(layer, x, d, u, 1.0) for layer, _, d, u in parts]
    together = list(fused_linear.shared_linear(layers, x, down, [up]))
    for found in (alone, together):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, right, strict=True))
        pairs = zip(gradients(found), wanted, strict=True)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs)


def test_a_scale_of_another_form_is_not_guessed():
    layer: Any = nn.Linear(4, 4).requires_grad_(False)
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    for scale in (torch.ones(4), torch.ones(2, 2), torch.ones(1, 4)):
        layer.scale_weight = scale
        assert not fused_linear.plain(layer, torch.randn(2, 4))


def kept_bytes(layer: nn.Linear, together: bool) -> int:
    """Bytes that autograd keeps for a bf16 input, but for the parameters themselves and the input."""
    x = torch.randn(2, 3, layer.in_features, dtype=torch.bfloat16)
    adapter = trained({"fc": layer}, NetworkConfig(4, 2.0))
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *adapter.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    branch: Any = adapter.branches["fc"]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if together:
            out = branch.fused_forward(layer, x)
        else:
            out = branch.add_to(layer, x, F.linear(x.requires_grad_(), layer.weight.bfloat16()), 1.0)
        out.sum().backward()
    return sum(size for place, size in kept.items() if place not in known)


def test_a_weight_in_another_format_is_not_kept_converted():
    layer = nn.Linear(64, 64, bias=False).requires_grad_(False)
    assert kept_bytes(layer, together=False) >= 64 * 64 * 2
    assert kept_bytes(layer, together=True) < 64 * 64 * 2 / 4


def unlike(kind: str) -> nn.Linear:
    """A Linear that is more than it seems; all of them answer twice what their weight says."""
    layer = nn.Linear(8, 8, bias=False).requires_grad_(False)
    own: Any = layer
    if kind == "wrapped":
        usual = layer.forward
        own.forward = lambda x: 2 * usual(x)
    elif kind == "of another class":

        class Other(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(x)

        layer.__class__ = Other
    else:
        import comfy.ops

        own = comfy.ops.disable_weight_init.Linear(8, 8, bias=False)
        own.weight.data, own.weight_function = layer.weight.data, [lambda weight: 2 * weight]
        layer = own.requires_grad_(False)
    return layer


@pytest.mark.parametrize("kind", ["wrapped", "of another class", "patched"])
def test_a_layer_that_is_more_than_it_seems_answers_as_it_does(kind, comfyui):
    layer = unlike(kind)
    adapter = trained({"fc": layer}, NetworkConfig(4, 2.0))
    x = torch.randn(3, 8)
    with adapter.attached({"fc": layer}):
        found = layer(x)
    assert torch.allclose(found, F.linear(x, 2 * layer.weight + adapter.branches["fc"].delta_weight()), atol=1e-5)


def test_a_layer_that_learns_itself_keeps_its_gradient():
    layer = nn.Linear(8, 8)
    adapter = trained({"fc": layer}, NetworkConfig(4, 2.0))
    with adapter.attached({"fc": layer}):
        layer(torch.randn(3, 8)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_learns_the_same_and_nothing_stays_on_it(tiny, name):
    t = tiny(name)
    adapter = new_adapter(t)
    layers = {n: t.model.layers()[n] for n in adapter.branches}

    def gradients(adapter: Adapter) -> tuple[torch.Tensor, ...]:
        with t.model.hold(), adapter.attached(layers):
            return torch.autograd.grad(one_loss(t, latents(t, 2), levels(t, 2), [1, 2]), list(adapter.parameters()))

    found = gradients(adapter)
    with adapter.attached(layers):
        assert all("forward" in layer.__dict__ for layer in layers.values())
    assert not any("forward" in layer.__dict__ for layer in layers.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_linear, "known", lambda layer: False)
        wanted = gradients(adapter)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-9


def in_place(tensor: torch.Tensor) -> torch.Tensor:
    """What the host lays on a weight works in place."""
    tensor += 1
    return tensor


def test_a_layers_own_numbers_are_not_changed_by_reading_them():
    layer: Any = nn.Linear(4, 3).requires_grad_(False)
    layer.weight_function, layer.bias_function = [in_place], [in_place]
    weight, bias = layer.weight.clone(), layer.bias.clone()
    for _ in range(2):
        assert torch.equal(base_layer.weight_of(layer, weight.device), weight + 1)
        assert torch.equal(base_layer.bias_of(layer, torch.ones(1)), bias + 1)
        x = torch.randn(2, 4)
        found = frozen_product.frozen_product(x, layer.weight, None, layer.bias, layer.weight_function)
        assert torch.allclose(found, F.linear(x, weight + 1, bias))
    assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)


def test_what_is_laid_on_a_scaled_weight_is_scaled_too_as_the_host_does_it():
    layer: Any = nn.Linear(4, 3, bias=False).requires_grad_(False)
    stored = layer.weight.to(torch.float8_e4m3fn)
    layer.weight = nn.Parameter(stored, requires_grad=False)
    layer.scale_weight, layer.weight_function = torch.tensor(0.5), [in_place]
    wanted = (stored.float() + 1) * 0.5
    assert torch.allclose(base_layer.weight_of(layer, stored.device), wanted)
    x = torch.randn(2, 4)
    found = frozen_product.frozen_product(x, layer.weight, layer.scale_weight, None, layer.weight_function)
    assert torch.allclose(found, F.linear(x, wanted), atol=1e-5)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.full((1,), 0.5), torch.full((1, 1), 0.5)])
def test_inputs_are_not_rounded_for_a_model_that_came_in_eight_bits(scale, monkeypatch):
    monkeypatch.setattr(frozen_product.eight_bits, "is_faster", lambda *_: True)
    weight, x = torch.randn(3, 4).to(torch.float8_e4m3fn), torch.randn(2, 4)
    found = frozen_product.frozen_product(x, weight, scale, None)
    assert torch.allclose(found, F.linear(x, weight.float() * 0.5), atol=1e-6)
