"""Where augmented assignments are taken apart: wherever they could spoil a gradient, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.performance.checkpointing import blocks_of, checkpointed
from lora_atelier.training.performance.out_of_place import Care, Harmless, OutOfPlace, again, decided, paused
from torch import nn

from ..conftest import FAMILIES
from ..host.test_host import latents, levels, new_adapter, one_loss
from .test_checkpointing import InPlace


def decisions_of_a_pass(t, adapter, blocks: list[nn.Module]) -> set[type | None]:
    """What holds inside the network, in the first forward pass and in the one that is computed again."""
    found: set[type | None] = set()
    layers = t.model.layers()
    handle = layers[next(iter(adapter.branches))].register_forward_hook(lambda *_: found.add(type(decided())))
    try:
        with t.model.hold(), adapter.attached(layers), checkpointed(blocks):
            one_loss(t, latents(t, 2), levels(t, 2), [1, 2]).backward()
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("twice", [False, True], ids=["kept", "checkpointed"])
def test_the_families_that_need_nothing_pay_for_one_pass_only(tiny, name, twice):
    t = tiny(name)
    fresh = type(t)(**{**vars(t), "model": host.Model(t.model.patcher)})
    with fresh.model.hold():
        pass  # here it is looked whether there are others' hooks, before this test's own
    blocks = blocks_of(t.model.base.diffusion_model) if twice else []
    adapter = new_adapter(t)
    assert decisions_of_a_pass(fresh, adapter, blocks) == {OutOfPlace}, "the first pass looks whether it is needed"
    # Under checkpointing the second computation runs in the backward pass, where nothing is decided any more.
    assert decisions_of_a_pass(fresh, adapter, blocks) <= {Harmless, type(None)}


def test_a_model_with_a_patch_is_never_trusted(tiny):
    t = tiny("sd15")
    assert host.Model(t.model.patcher)._is_trusted()
    patched = t.model.patcher.clone()
    patched.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    assert not host.Model(patched)._is_trusted()
    assert host.Model(t.model.patcher.clone())._is_trusted()


@pytest.mark.parametrize("trusted", [False, True])
def test_care_keeps_the_mode_where_it_is_needed(trusted):
    """Two passes of a block that spoils its own gradient, under checkpointing, against the gradient written by hand."""
    torch.manual_seed(0)
    block = InPlace(6).double()
    start, shift = torch.randn(3, 6, dtype=torch.double), torch.randn(3, 6, dtype=torch.double)
    x = (start + shift * block.inner(start).tanh()) * 1.1
    expected = torch.autograd.grad((x + block.inner(x).sin()).square().sum(), list(block.parameters()))
    care = Care(trusted)
    for _ in range(3):
        with checkpointed([block]):
            with care.around("form"):
                out = block(start.clone(), shift)
            found = torch.autograd.grad(out.square().sum(), list(block.parameters()))
        assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_an_assignment_counts_even_before_it_carries_a_gradient():
    """In the next step a dropped branch may be back, and the same statement would spoil its gradient."""
    care = Care(trusted=True)
    with care.around("form"):
        x = torch.ones(2)
        x += 1
    with care.around("form"):
        assert isinstance(decided(), OutOfPlace)
    with care.around("another form"):
        torch.ones(2) + 1
    with care.around("another form"):
        assert isinstance(decided(), Harmless)
    with torch.no_grad(), care.around("form"):
        assert decided() is None


def test_a_second_pass_has_what_the_first_one_had():
    with again(None):
        assert isinstance(decided(), OutOfPlace), "where nobody decided, the safe way"
    with again(Harmless()):
        assert decided() is None
    with OutOfPlace() as mode:
        with again(mode):
            assert decided() is mode, "not entered twice"
        with paused():
            x = torch.ones(2, requires_grad=True) * 1
            before = x
            x += 1
            assert decided() is None and x is before
        assert decided() is mode
    with again(mode):
        assert isinstance(decided(), OutOfPlace)


def test_a_kernel_without_a_backward_is_parted_in_a_compiled_graph_too(monkeypatch):
    """The host's fused kernels are such operators; where no gradient passes, they stay."""
    from lora_atelier.training.performance import out_of_place

    @torch.library.custom_op("atelier_test::square", mutates_args=())
    def square(x: torch.Tensor) -> torch.Tensor:
        return x * x

    square.register_fake(torch.empty_like)
    packet, calls = torch.ops.atelier_test.square, []

    def step_by_step(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.requires_grad)
        return x * x

    monkeypatch.setitem(out_of_place.KERNELS, packet, step_by_step)
    compiled = torch.compile(
        lambda x, y: packet(x) + packet(y), backend=lambda module, _inputs: out_of_place.without_in_place(module), fullgraph=True
    )
    x, y = torch.tensor([3.0], requires_grad=True), torch.tensor([2.0])
    found = compiled(x, y)
    found.backward()
    assert found.item() == 13.0 and x.grad is not None and x.grad.item() == 6.0 and calls == [True]
