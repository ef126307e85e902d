"""Activations in main memory: the same gradient to the bit, and no copies of weights."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from lora_atelier.training import job
from lora_atelier.training.performance.activation_offload import AHEAD, LEAVING, Offload, can_offload, place
from lora_atelier.training.performance.checkpointing import checkpointed
from lora_atelier.training.tensors import transfer
from torch import nn

from ..host.test_host import latents, levels, new_adapter, one_loss
from ..test_job import NO_PREVIEW, Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401
from .late_device import Late

CPU = torch.device("cpu")
HAS_MAIN_MEMORY = pytest.mark.cpu_only("the late device has main memory behind it")


@pytest.mark.parametrize("name", ["sd15", "sd3"])
@pytest.mark.parametrize("twice", [False, True], ids=["kept", "checkpointed"])
def test_the_gradient_is_the_same(tiny, name, twice):
    """But for rounding: what comes back may lie otherwise in memory, and a convolution then adds in another order."""
    t = tiny(name)
    adapter = new_adapter(t)

    def gradients(offload: bool) -> list[torch.Tensor]:
        weights = [*t.model.weights(), *adapter.parameters()]
        adapter.zero_grad()
        with t.model.hold(), adapter.attached(t.model.layers()), checkpointed(t.model.blocks() if twice else []):
            if offload:
                with Offload(t.model.device, smallest=0).on(weights):
                    one_loss(t, latents(t, 2), levels(t, 2), [1, 2]).backward()
            else:
                one_loss(t, latents(t, 2), levels(t, 2), [1, 2]).backward()
        return [p.grad.clone() for p in adapter.parameters()]

    plain, parked = gradients(False), gradients(True)
    assert any(g.abs().max() > 0 for g in plain)
    far = [((a - b).norm() / a.norm().clamp_min(1e-9)).item() for a, b in zip(plain, parked, strict=True)]
    assert max(far) <= 1e-5


def test_weights_and_small_tensors_stay_where_they_are():
    weight = nn.Parameter(torch.randn(64, 64), requires_grad=False)
    large, small = torch.randn(512, 64, requires_grad=True), torch.randn(2, 64, requires_grad=True)
    with Offload(CPU, smallest=4096).on([weight]):
        by_weight, of_large, of_small = large @ weight, large * large, small * small
    assert place(by_weight.grad_fn._saved_mat2) == place(weight)
    assert place(of_small.grad_fn._saved_self) == place(small)
    assert place(of_large.grad_fn._saved_self) != place(large), "a large activation is parked"
    assert torch.equal(of_large.grad_fn._saved_self, large)


def test_a_small_tensor_that_is_changed_in_place_is_an_error_as_without():
    x = torch.ones(3, requires_grad=True) * 1
    with Offload(CPU).on([]):
        y = x * x
        with torch.no_grad():
            x += 1
        with pytest.raises(RuntimeError, match="changed in place"):
            y.sum().backward()


class Chain(nn.Module):
    """Layers whose inputs are all kept, with a branch that reads one input several times."""

    def __init__(self, count: int = 8, width: int = 16):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = (layer(x) * layer(x.sin())).tanh() + x
        return x.square().sum()


def step(chain: Chain, x: torch.Tensor) -> list[torch.Tensor]:
    loss = chain(x)
    return list(torch.autograd.grad(loss, list(chain.parameters())))


@HAS_MAIN_MEMORY
def test_copies_that_come_as_late_as_they_may_give_the_very_gradient():
    chain, x = Chain(), torch.randn(4, 16)
    plain, late = step(chain, x), Late()
    offload = Offload(CPU, smallest=0, side=late)
    for _ in range(3):
        with offload.on(chain.parameters()), late:
            found = step(chain, x)
        assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))
    assert late.faults == []


@HAS_MAIN_MEMORY
@pytest.mark.parametrize("careless", ["early", "nobody waits"])
def test_a_device_that_copies_at_the_wrong_time_would_be_found_out(careless, monkeypatch):
    chain, x, late = Chain(), torch.randn(4, 16), Late(careful=careless != "early")
    if careless != "early":
        monkeypatch.setattr(late, "wait", lambda copying: None)
    with Offload(CPU, smallest=0, side=late).on(chain.parameters()), late:
        step(chain, x)
    assert late.faults


@HAS_MAIN_MEMORY
def test_buffers_are_made_once_and_used_in_every_step():
    chain, late = Chain(), Late()
    offload = Offload(CPU, smallest=0, side=late)
    counts = []
    for rows in (4, 4, 6, 4, 6):
        with offload.on(chain.parameters()):
            step(chain, torch.randn(rows, 16))
        counts.append((offload.buffers.made, offload.buffers.held))
    assert counts[0] == counts[1] and counts[0][0] > 0, "a second step of one size asks for nothing"
    assert counts[2:] == [counts[2]] * 3, "nor do those of a smaller size after a larger one"
    assert counts[2][1] <= 1.5 * counts[0][1] + 1, "and no more is held than the largest step needs"


@HAS_MAIN_MEMORY
def test_an_input_that_several_layers_keep_leaves_once():
    late, x = Late(), torch.randn(4, 16, requires_grad=True)
    weights = [nn.Parameter(torch.randn(16, 16)) for _ in range(3)]
    with Offload(CPU, smallest=0, side=late).on(weights):
        y = x * 1.0
        loss = sum((y @ weight).sum() for weight in weights)
        assert isinstance(loss, torch.Tensor)
        assert len(late.begun) == 1
        loss.backward()
    assert len(late.begun) == 2, "and comes back once"
    assert all(torch.equal(weight.grad, y.detach().sum(0)[:, None].expand(16, 16)) for weight in weights)


@HAS_MAIN_MEMORY
def test_only_so_many_are_under_way_and_those_that_come_next_are_ahead():
    chain, late = Chain(20), Late()
    most_leaving, most_coming = [], []
    offload = Offload(CPU, smallest=0, side=late)
    begin = late.begin

    def watched(copies, *given, **named):
        most_leaving.append(len(offload._leaving))
        most_coming.append(len(offload._coming))
        return begin(copies, *given, **named)

    late.begin = watched
    with offload.on(chain.parameters()):
        step(chain, torch.randn(4, 16))
    assert max(most_leaving) == LEAVING and max(most_coming) == AHEAD


@HAS_MAIN_MEMORY
def test_a_graph_that_is_dropped_before_its_gradient_leaves_nothing_under_way():
    chain, x, late = Chain(), torch.randn(4, 16), Late()
    offload = Offload(CPU, smallest=0, side=late)
    with offload.on(chain.parameters()), late:
        dropped = chain(x)
        del dropped
        assert offload.buffers.used == LEAVING * x.nbytes
    assert offload.buffers.used == 0
    with offload.on(chain.parameters()), late:
        loss = chain(x)
        chain.layers[3].weight.register_hook(lambda _: 1 // 0)
        with suppress(ZeroDivisionError):
            loss.backward()
    assert late.faults == []


@HAS_MAIN_MEMORY
def test_what_is_changed_in_place_while_it_leaves_is_an_error():
    late = Late()
    with Offload(CPU, smallest=0, side=late).on([]):
        x = torch.ones(3, requires_grad=True) * 1
        y = x * x
        with torch.no_grad():
            x += 1
        with pytest.raises(RuntimeError, match="changed in place"):
            y.sum().backward()


def test_the_order_of_the_numbers_stays():
    turned = torch.randn(4, 6, requires_grad=True).t() * 1
    turned = turned.t().contiguous().t()
    with Offload(CPU, smallest=0).on([]):
        y = turned * turned
    assert y.grad_fn._saved_self.stride() == turned.stride() and torch.equal(y.grad_fn._saved_self, turned)


def test_only_devices_with_a_memory_of_their_own():
    assert [can_offload(torch.device(kind)) for kind in ("cpu", "mps", "cuda", "xpu")] == [False, False, True, True]


@pytest.mark.cpu_only("a GPU has a memory of its own")
def test_on_a_cpu_it_is_said_and_nothing_changes(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    """A run that was begun without it goes on with it: that is what one does when the memory was too small."""
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole"))
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 5, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, dataset, recipe("cut"))
    said: list[str] = []
    with torch.inference_mode():
        again = job.run_training(
            t.model, t.text, t.codec, dataset, recipe("cut", offload_activations=True), preview=NO_PREVIEW,
            graph={}, show=said.append,
        )  # fmt: skip
    assert again.epochs.name == "cut"
    assert all(torch.equal(whole.tensors[k], again.tensors[k]) for k in whole.tensors)
    assert len([line for line in said if line.startswith("offload: the model computes in main memory")]) == 1


def test_locked_memory_that_nobody_uses_goes_back_when_a_run_ends(tiny, dataset, monkeypatch):  # noqa: F811
    given_back: list[int] = []
    monkeypatch.setattr(transfer, "keeps_pinned", lambda: True)
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: given_back.append(1), raising=False)
    go(tiny("sd15"), dataset, recipe("offloading", offload_activations=True))
    assert given_back == [1]
