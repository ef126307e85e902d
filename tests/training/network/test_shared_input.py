"""Layers that read one tensor, as one: the same numbers, whoever asks, and never for a layer that was asked otherwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.network import fused_linear
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.shared_input import Listener
from torch import nn

from ..conftest import FAMILIES
from ..host.test_host import latents, levels, new_adapter, one_loss
from .test_flat import NETWORKS, layers_of, loss_of, moved


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(1, 3), min_size=2, max_size=5), inputs=st.integers(1, 6), rank=st.integers(1, 3),
    needed=st.booleans(), unused=st.integers(0, 7), shape=st.lists(st.integers(1, 3), min_size=1, max_size=2),
)  # fmt: skip
def test_numbers_and_gradients_are_those_of_the_layers_by_themselves(widths, inputs, rank, needed, unused, shape):
    """In double precision against autograd; one of the answers may be left unused."""
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, w, bias=i % 2 == 0, dtype=torch.double).requires_grad_(False) for i, w in enumerate(widths)]
    x = torch.randn(*shape, inputs, dtype=torch.double, requires_grad=needed)
    down = torch.randn(len(widths) * rank, inputs, dtype=torch.double, requires_grad=True)
    counts = [[w, 1] for w in widths[:1]]
    for w in widths[1:]:  # neighbours of one width are a stack
        if counts[-1][0] == w:
            counts[-1][1] += 1
        else:
            counts.append([w, 1])
    ups = [torch.randn(count, w, rank, dtype=torch.double, requires_grad=True) for w, count in counts]
    singles = [up[i] for up in ups for i in range(len(up))]
    weights = [torch.randn(*shape, w, dtype=torch.double) for w in widths]

    def total(outs) -> torch.Tensor:
        return sum(
            ((o.sin() * w).sum() for i, (o, w) in enumerate(zip(outs, weights, strict=True)) if i != unused), torch.zeros(())
        )

    def by_themselves() -> list[torch.Tensor]:
        parts = down.split(rank)
        return [F.linear(x, y.weight + u @ d, y.bias) for y, u, d in zip(layers, singles, parts, strict=True)]

    together = fused_linear.shared_linear(layers, x, down, ups)
    assert all(torch.allclose(a, b) for a, b in zip(together, by_themselves(), strict=True))
    asked = [down, *ups, *([x] if needed else [])]
    wanted = torch.autograd.grad(total(by_themselves()), asked, allow_unused=True, materialize_grads=True)
    found = torch.autograd.grad(total(together), asked)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_network_may_change_each_answer_in_place():
    layers = [nn.Linear(4, 3).requires_grad_(False) for _ in range(3)]
    x, down = torch.randn(2, 4), torch.randn(6, 4, requires_grad=True)
    q, k, v = fused_linear.shared_linear(layers, x, down, [torch.randn(3, 3, 2, requires_grad=True)])
    kept = k.clone()
    q += 1
    v *= 2
    assert torch.equal(k, kept)
    (q.sum() + k.sum() + v.sum()).backward()


def test_readers_are_heard_and_not_guessed():
    listener, x, y = Listener(), torch.ones(2), torch.ones(2)
    for name, tensor in [("q", x), ("k", x), ("a", y), ("v", x), ("b", y), ("twice", x), ("twice", x)]:
        listener.note(name, tensor)
    assert listener.readers(across=True) == [["q", "k", "v"], ["a", "b"]]
    assert listener.readers(across=False) == [["q", "k"]]
    listener.note("late", x)
    del x
    z = torch.ones(2)
    listener.note("other", z)
    assert all("other" not in group for group in listener.readers(across=True)), "a tensor that is gone is nobody's"


def heard(adapter: Adapter, layers: dict[str, nn.Module]) -> None:
    with adapter.attached(layers), adapter.listening():
        loss_of(layers)


@pytest.mark.parametrize("name", ["LoRA", "scaled", "LoRA+", "rules", "DoRA"])
def test_a_unit_learns_what_its_layers_learn(name, monkeypatch):
    asked: list[int] = []
    real = fused_linear.shared_linear
    monkeypatch.setattr(fused_linear, "shared_linear", lambda layers, *more: asked.append(len(layers)) or real(layers, *more))

    def gradient(listen: bool) -> dict[str, torch.Tensor]:
        layers = layers_of()
        adapter = moved(Adapter.fresh(layers, NETWORKS[name], 0))
        if listen:
            heard(adapter, layers)
        flat = adapter.flatten(torch.float32)
        with adapter.attached(layers, across_blocks=True):
            flat.begin()
            loss_of(layers).backward()
            flat.collect()
        return flat.named(flat.gradient)

    wanted = gradient(listen=False)
    assert not asked
    found = gradient(listen=True)
    assert asked == {"DoRA": [], "rules": [2]}.get(name, [3])  # one of the rules gives the values another rank
    assert all(torch.allclose(found[key], wanted[key], rtol=1e-4, atol=1e-7) for key in wanted)


def test_a_layer_that_is_asked_with_another_tensor_answers_by_itself():
    layers = layers_of()
    adapter = moved(Adapter.fresh(layers, NETWORKS["scaled"], 0))
    heard(adapter, layers)
    flat, x, y = adapter.flatten(torch.float32), torch.ones(2, 16), torch.zeros(2, 16)
    with adapter.attached(layers):
        flat.begin()
        q, k, v = layers["a.to_q"](x), layers["a.to_k"](y), layers["a.to_v"](x.clone())
        again = layers["a.to_q"](y)
    for name, given_, found in [("a.to_q", x, q), ("a.to_k", y, k), ("a.to_v", x, v), ("a.to_q", y, again)]:
        branch = adapter.branches[name]
        layer = layers[name]
        assert torch.allclose(found, F.linear(given_, layer.weight + branch.delta_weight(), layer.bias), atol=1e-6)


def test_a_tensor_that_was_changed_in_place_is_another():
    """Heard, and looked at in the pass."""
    layers = layers_of()
    listener, z = Listener(), torch.ones(2)
    listener.note("q", z)
    z.add_(1)
    listener.note("k", z)
    assert listener.readers(across=True) == []
    adapter = moved(Adapter.fresh(layers, NETWORKS["scaled"], 0))
    heard(adapter, layers)
    flat, x = adapter.flatten(torch.float32), torch.ones(2, 16)
    with adapter.attached(layers):
        flat.begin()
        layers["a.to_q"](x)
        x = x.add_(1)
        k = layers["a.to_k"](x)
    layer, branch = layers["a.to_k"], adapter.branches["a.to_k"]
    assert torch.allclose(k, F.linear(x, layer.weight + branch.delta_weight(), layer.bias), atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_models_learn_the_same_with_units_and_without(tiny, name):
    t = tiny(name)
    layers = t.model.layers()

    def learnt(listen: bool, across: bool) -> tuple[torch.Tensor, int]:
        adapter = new_adapter(t)
        mine = {n: layers[n] for n in adapter.branches}
        with t.model.hold():
            if listen:
                with adapter.attached(mine), adapter.listening():
                    one_loss(t, latents(t, 2), levels(t, 2), [1, 2])
            flat = adapter.flatten(t.model.compute_dtype)
            with adapter.attached(mine, across):
                flat.begin()
                one_loss(t, latents(t, 2), levels(t, 2), [1, 2]).backward()
                flat.collect()
                units = len({id(u) for u in adapter._together._units.values()}) if adapter._together else 0
        return flat.gradient, units

    wanted, none = learnt(False, False)
    for across in (False, True):
        found, units = learnt(True, across)
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
        assert none == 0 and (units > 0 if name.startswith("sd15") else units >= 0)
