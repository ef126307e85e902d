"""Output preservation on a real model: the base's own answer is the target."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training import seeding
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.network import targets
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.objective.preservation import base_prediction, preservation_loss

from ...conftest import KERNELS_DIFFER


@pytest.fixture
def setting(tiny):
    """A tiny flow model with a fresh adapter, and something to ask it."""
    t = tiny("sd3")
    layers = targets.choose(t.model.layers(), "attention")
    adapter = Adapter.fresh(layers, NetworkConfig(rank=2, alpha=2), 0).to(t.model.device)
    generator = seeding.step_generator(0, 0)
    x = torch.randn(2, 16, 8, 8, generator=generator).to(t.model.device)
    sigma = torch.tensor([0.3, 0.8], device=t.model.device)
    with t.model.hold():
        conditions = [t.model.condition(t.conditioning(i), x[i : i + 1], {}) for i in range(2)]
    return t.model, layers, adapter, x, sigma, conditions


def trained(adapter: Adapter) -> None:
    with torch.no_grad():
        for name, tensor in adapter.state().items():
            if name.endswith(".up"):
                tensor += 0.1


def test_the_base_predictions_as_if_there_were_no_adapter(setting):
    model, layers, adapter, x, sigma, conditions = setting
    trained(adapter)
    with model.hold():
        with torch.no_grad():
            bare = model.predict(x, sigma, conditions)
        with adapter.attached(layers):
            before = base_prediction(model, adapter, x, sigma, model.merged(conditions))
            after = model.predict(x, sigma, conditions)
    assert torch.equal(before, bare) and not before.requires_grad
    assert adapter.strength == 1.0 and not torch.allclose(after, bare)
    assert preservation_loss(after, before).item() == pytest.approx((after - before).square().mean().item(), rel=1e-5)


def test_the_loss_is_zero_as_training_begins_and_then_pulls_the_adapter_back(setting):
    model, layers, adapter, x, sigma, conditions = setting
    losses = []
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-3)
    with model.hold(), adapter.attached(layers):
        without = base_prediction(model, adapter, x, sigma, model.merged(conditions))
        at_first = preservation_loss(model.predict(x, sigma, conditions), without)
        assert at_first <= (1e-12 if KERNELS_DIFFER else 0)
        trained(adapter)
        for _ in range(3):
            before = base_prediction(model, adapter, x, sigma, model.merged(conditions))
            loss = preservation_loss(model.predict(x, sigma, conditions), before)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2] > 0


def test_the_adapter_comes_back_on_after_an_error():
    adapter = Adapter({})
    adapter.strength = 0.7
    with pytest.raises(RuntimeError, match="meanwhile"), adapter.disabled():
        assert adapter.strength == 0.0
        raise RuntimeError("meanwhile")
    assert adapter.strength == 0.7
