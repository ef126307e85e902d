"""Activations in main memory: the same gradient to the bit, and no copies of weights."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training import job
from lora_atelier.training.performance.activation_offload import can_offload, offloaded, place
from lora_atelier.training.performance.checkpointing import checkpointed
from torch import nn

from ..host.test_host import latents, levels, new_adapter, one_loss
from ..test_job import NO_PREVIEW, Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401


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
                with offloaded(weights, smallest=0):
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
    with offloaded([weight], smallest=4096):
        by_weight, of_large, of_small = large @ weight, large * large, small * small
    assert place(by_weight.grad_fn._saved_mat2) == place(weight)
    assert place(of_small.grad_fn._saved_self) == place(small)
    assert place(of_large.grad_fn._saved_self) != place(large), "a large activation is parked"
    assert torch.equal(of_large.grad_fn._saved_self, large)


def test_a_small_tensor_that_is_changed_in_place_is_an_error_as_without():
    x = torch.ones(3, requires_grad=True) * 1
    with offloaded([]):
        y = x * x
        with torch.no_grad():
            x += 1
        with pytest.raises(RuntimeError, match="changed in place"):
            y.sum().backward()


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
