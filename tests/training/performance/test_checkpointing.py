"""Recomputed blocks: the very gradient of the plain pass, less kept in memory, and nothing left on the model."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.performance import memory
from lora_atelier.training.performance.checkpointing import blocks_of, checkpointed
from lora_atelier.training.performance.out_of_place import OutOfPlace
from torch import nn

from ..conftest import FAMILIES
from ..host.test_host import latents, levels, new_adapter, one_loss


def gradients(t, adapter, blocks: list[nn.Module]) -> tuple[list[torch.Tensor], int]:
    """Gradients of a batch of two captions, and how many bytes autograd kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with t.model.hold(), adapter.attached(t.model.layers()), checkpointed(blocks):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = one_loss(t, latents(t, 2), levels(t, 2), [1, 2])
        weights = {p.untyped_storage().data_ptr() for p in t.model.base.parameters()}
        grads = torch.autograd.grad(loss, list(adapter.parameters()))
    return list(grads), sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_is_that_of_the_plain_pass(tiny, name):
    t = tiny(name)
    adapter = new_adapter(t)
    plain, _ = gradients(t, adapter, [])
    again, _ = gradients(t, adapter, blocks_of(t.model.base.diffusion_model))
    assert any(g.abs().max() > 0 for g in plain)
    for one, other in zip(plain, again, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm() + 1e-12


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_some_blocks_computed_twice_keep_what_is_foretold_and_give_the_same_gradient(tiny, name):
    """Whichever they are; and what is kept lies between none and all, as the forecast has it."""
    t = tiny(name)
    adapter, blocks = new_adapter(t), t.model.blocks()
    with t.model.hold(), adapter.attached(t.model.layers()):
        weights = [*t.model.weights(), *adapter.parameters()]
        found = memory.measure(blocks, weights, lambda: one_loss(t, latents(t, 2), levels(t, 2), [1, 2]))
    plain, kept = gradients(t, adapter, [])
    assert all(block.flops > 0 for block in found.blocks)
    whole = len(blocks)
    for some in (range(whole // 2), range(whole // 2, whole), range(0, whole, 2)):
        again, less = gradients(t, adapter, [blocks[i] for i in some])
        assert all((one - other).norm() <= 1e-5 * one.norm() + 1e-12 for one, other in zip(plain, again, strict=True))
        foretold = found.outside + sum(b.inputs if i in some else b.inside for i, b in enumerate(found.blocks))
        assert less < kept and less == pytest.approx(foretold, rel=0.25)


@pytest.mark.parametrize("name", FAMILIES)
def test_less_is_kept_and_nothing_stays_behind(tiny, name):
    t = tiny(name)
    blocks = blocks_of(t.model.base.diffusion_model)
    assert len(blocks) >= 2
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    assert not any(id(block) in inside for block in blocks), "a block within a block would be computed three times"
    _, plain = gradients(t, new_adapter(t), [])
    _, saved = gradients(t, new_adapter(t), blocks)
    assert saved < 0.6 * plain
    assert not any("forward" in block.__dict__ for block in blocks)


class InPlace(nn.Module):
    """Changes its input in place, as the blocks of several large models do."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        x += shift * self.inner(x).tanh()
        x *= 1.1
        x += self.inner(x).sin()  # by now what the first line keeps for its gradient has been overwritten
        return x


def test_blocks_that_change_their_input_in_place_get_the_right_gradient():
    torch.manual_seed(0)
    blocks = nn.ModuleList(InPlace(8) for _ in range(3)).double()
    start, shift = torch.randn(4, 8, dtype=torch.double), torch.randn(4, 8, dtype=torch.double)

    def plain() -> torch.Tensor:
        x = start
        for block in blocks:
            x = (x + shift * block.inner(x).tanh()) * 1.1
            x = x + block.inner(x).sin()
        return x.square().sum()

    def checkpointed_pass() -> torch.Tensor:
        x = start.clone()
        with checkpointed(list(blocks)):
            for block in blocks:
                x = block(x, shift)
            return x.square().sum()

    weights = list(blocks.parameters())
    with torch.no_grad():
        assert torch.allclose(plain(), checkpointed_pass())
    for one, other in zip(torch.autograd.grad(plain(), weights), torch.autograd.grad(checkpointed_pass(), weights), strict=True):
        assert torch.allclose(one, other)


class Counting(nn.Module):
    """Reads and writes a table that all blocks share, as the host's transformer blocks do with their options."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, options: dict) -> torch.Tensor:
        options["count"] = options.get("count", 0) + 1
        return self.inner(x).tanh() * options["count"]


@pytest.mark.parametrize("named", [False, True], ids=["positional", "named"])
def test_the_second_pass_finds_the_tables_of_the_first(named):
    torch.manual_seed(0)
    blocks = nn.ModuleList(Counting(4) for _ in range(3)).double()
    start = torch.randn(2, 4, dtype=torch.double)

    def gradient(recomputed: list[nn.Module]) -> list[torch.Tensor]:
        x, options = start, {}
        with checkpointed(recomputed):
            for block in blocks:
                x = block(x, options=options) if named else block(x, options)
            assert options == {"count": 3}
            return list(torch.autograd.grad(x.square().sum(), list(blocks.parameters())))

    for one, other in zip(gradient([]), gradient(list(blocks)), strict=True):
        assert torch.equal(one, other)


def test_without_checkpointing_they_work_as_well():
    """Where a model is held, nothing is changed in place that a gradient needs."""
    block = InPlace(4)
    start, shift = torch.randn(2, 4), torch.randn(2, 4)
    with pytest.raises(RuntimeError, match="inplace"):
        block(start.clone().requires_grad_() * 1, shift).sum().backward()
    with OutOfPlace():
        block(start.clone().requires_grad_() * 1, shift).sum().backward()
    counts = torch.ones(2, dtype=torch.int32)
    same = counts
    with OutOfPlace():
        counts += 1  # no gradient, so everybody who holds it sees the change
        half = torch.ones(2, dtype=torch.float16, requires_grad=True) * 1
        half += torch.ones(2)
        called = torch.ones(2, requires_grad=True) * 1
        kept = called
        called.add_(1)  # a call, whose result nobody binds, has to change what it is called on
    assert kept.tolist() == [2.0, 2.0]
    assert same.tolist() == [2, 2] and half.dtype == torch.float16


def test_what_somebody_else_put_in_place_of_forward_is_put_back():
    block = InPlace(2)
    other = block.forward = lambda x, shift: x * 2  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="stop"), checkpointed([block]):
        assert block.forward is not other
        raise RuntimeError("stop")
    assert block.forward is other
