"""The running average against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.optim.ema import Average


@pytest.fixture
def adapter() -> Adapter:
    layers = {"a": torch.nn.Linear(6, 4), "b": torch.nn.Conv2d(3, 5, 3)}
    return Adapter.fresh(layers, NetworkConfig(rank=2, alpha=2), 0)


def move(adapter: Adapter, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)


def copies(tensors) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_it_is_that_of_diffusers_over_the_same_steps(adapter, decay):
    from diffusers.training_utils import EMAModel

    average = Average(adapter.flatten(torch.float32), decay)
    theirs = EMAModel(adapter.parameters(), decay=decay)
    for step in range(40):
        move(adapter, step)
        average.update()
        theirs.step(adapter.parameters())
    with average.swapped_in():
        for ours, expected in zip(adapter.parameters(), theirs.shadow_params, strict=True):
            assert torch.allclose(ours, expected, atol=1e-5)


def test_the_decay_rises_to_its_limit(adapter):
    average = Average(adapter.flatten(torch.float32), 0.9)
    assert [average.decay_at(n) for n in (0, 1, 8, 1000)] == pytest.approx([0, 2 / 11, 0.5, 0.9])


def test_swapping_in_is_undone_bit_for_bit_also_on_an_error(adapter):
    average = Average(adapter.flatten(torch.float32), 0.9)
    for step in range(3):
        move(adapter, step)
        average.update()
    own = copies(adapter.parameters())
    with pytest.raises(RuntimeError, match="meanwhile"), average.swapped_in():
        assert not torch.equal(next(adapter.parameters()), own[0])
        raise RuntimeError("meanwhile")
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), own, strict=True))


def test_going_on_from_a_saved_state_equals_an_uninterrupted_run(adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    flat = adapter.flatten(torch.float32)
    average = Average(flat, 0.95)
    for step in range(5):
        move(adapter, step)
        average.update()
    save_file({name: tensor.clone() for name, tensor in average.state().items()}, tmp_path / "ema.safetensors")
    resumed = Average(flat, 0.95)
    resumed.load_state(load_file(tmp_path / "ema.safetensors"))
    for step in range(5, 9):
        move(adapter, step)
        average.update()
        resumed.update()
    assert resumed.updates == 9
    mine, other = average.state(), resumed.state()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_what_does_not_fit_is_refused(adapter):
    with pytest.raises(AtelierError, match="EMA decay: 1 must lie"):
        Average(adapter.flatten(torch.float32), 1)
    average = Average(adapter.flatten(torch.float32), 0.9)
    state = average.state()
    del state["a.up"]
    with pytest.raises(ValueError, match="another adapter"):
        average.load_state(state)
