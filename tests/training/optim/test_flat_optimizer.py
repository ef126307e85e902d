"""An optimizer over all parameters as one: the steps of one over the parameters themselves, and a state that either can take."""

from __future__ import annotations

import copy

import pytest
import torch
from lora_atelier.training.config import NetworkConfig, OptimizerConfig
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.optim import optimizers
from lora_atelier.training.optim.flat_optimizer import FlatOptimizer
from torch import nn

from .test_state import PACKAGES

BY_NUMBER = ("AdamW", "SGD", "Lion", "Prodigy", "DAdaptAdam", "DAdaptAdamW", "AdamWScheduleFree")
BY_MATRIX = ("Adafactor", "CAME", "ProdigyPlusScheduleFree", "Muon")
NETWORK = NetworkConfig(3, 6.0, lora_plus_ratio=4.0)


def config_of(name: str) -> OptimizerConfig:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    if name == "Adafactor":
        pytest.importorskip("transformers")
    rate = 1.0 if name in ("Prodigy", "DAdaptAdam", "DAdaptAdamW", "ProdigyPlusScheduleFree") else 0.01
    return OptimizerConfig(name, rate, schedule="constant", optimizer_args="d0=0.001" if rate == 1.0 else "")


def adapter_of(name: str) -> Adapter:
    layers = {"a": nn.Linear(9, 7), "b": nn.Conv2d(3, 5, 3), "c": nn.Linear(9, 7, bias=False), "d": nn.Linear(5, 3)}
    network = NETWORK if name != "Prodigy" else NetworkConfig(3, 6.0)  # which knows one rate alone
    return Adapter.fresh(layers, network, 0)


def gradients(adapter: Adapter, step: int) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(step)
    return {name: torch.randn(value.shape, generator=stream) for name, value in adapter.state().items()}


def plain_steps(name: str, steps: int) -> tuple[dict[str, torch.Tensor], dict]:
    config, adapter = config_of(name), adapter_of(name)
    groups = [(group["params"], config.peak * group["rate"]) for group in adapter.parameter_groups()]
    optimizer = optimizers.build(config, groups)
    own = dict(zip(adapter.state(), adapter.parameters(), strict=True))
    for step in range(steps):
        for key, gradient in gradients(adapter, step).items():
            own[key].grad = gradient
        optimizer.step()
    return {key: value.clone() for key, value in adapter.state().items()}, copy.deepcopy(optimizer.state_dict())


def flat_steps(name: str, first: int, last: int, state: dict | None = None, weights: dict | None = None):
    config, adapter = config_of(name), adapter_of(name)
    flat = adapter.flatten(torch.float32)
    optimizer = FlatOptimizer(config, flat)
    if state is not None:
        adapter.load_state(weights)
        optimizer.load_state(state)
    for step in range(first, last):
        for key, gradient in gradients(adapter, step).items():
            flat.named(flat.gradient)[key].copy_(gradient)
        with optimizer.gradients_in_place():
            optimizer.of_torch.step()
        flat.zero()
    return {key: value.clone() for key, value in adapter.state().items()}, copy.deepcopy(optimizer.state())


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.allclose(found[k], wanted[k], rtol=1e-4, atol=1e-6) for k in wanted)


@pytest.mark.parametrize("name", BY_NUMBER + BY_MATRIX)
def test_its_steps_are_those_over_the_parameters_by_themselves(name):
    assert close(flat_steps(name, 0, 6)[0], plain_steps(name, 6)[0])
    assert optimizers.goes_by_number(config_of(name)) == (name in BY_NUMBER)


@pytest.mark.parametrize("name", BY_NUMBER + BY_MATRIX)
def test_a_state_that_was_kept_for_each_parameter_goes_on(name):
    """That of a run before its parameters lay in one tensor."""
    weights, state = plain_steps(name, 3)
    whole, _ = plain_steps(name, 6)
    assert close(flat_steps(name, 3, 6, state, weights)[0], whole)


@pytest.mark.parametrize("name", BY_NUMBER + BY_MATRIX)
def test_it_goes_on_bit_for_bit_from_its_own_state(name):
    whole, _ = flat_steps(name, 0, 6)
    weights, state = flat_steps(name, 0, 3)
    numbers = [index for group in state["param_groups"] for index in group["params"]]
    assert numbers == list(range(8)), "the state is one of the eight matrices, however they lie"
    found, _ = flat_steps(name, 3, 6, state, weights)
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_what_looks_at_each_matrix_by_itself_gets_each_by_itself():
    assert not optimizers.goes_by_number(OptimizerConfig("Prodigy", 1.0, optimizer_args="slice_p=11"))
    assert not optimizers.goes_by_number(OptimizerConfig("Lion", optimizer_args="use_gc=True"))


def test_a_state_of_other_parameters_is_refused():
    _, state = flat_steps("AdamW", 0, 2)
    state["param_groups"] = state["param_groups"][:1]
    with pytest.raises(ValueError, match="groups"):
        flat_steps("AdamW", 2, 3, state, adapter_of("AdamW").state())
