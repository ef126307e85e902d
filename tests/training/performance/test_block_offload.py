"""Blocks whose weights come for their own passes: the same gradient from nothing but what came, and never more than is said."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.host.weights import put_back, without_inference_tensors
from lora_atelier.training.performance.block_offload import Traffic, kept_away, on_device, scattered
from lora_atelier.training.performance.checkpointing import checkpointed
from torch import Tensor, nn

from ...conftest import KERNELS_DIFFER
from ..conftest import FAMILIES
from ..host.test_host import latents, levels, new_adapter, one_loss, picture
from .late_device import Late

CPU = torch.device("cpu")
HAS_MAIN_MEMORY = pytest.mark.cpu_only("the late device has main memory behind it")


class Hollow:
    """Modules whose tensors are stand-ins full of NaN for as long as it lasts; the late device in it copies the real ones."""

    def __init__(self, modules: list[nn.Module], careful: bool = True):
        self.careful = careful
        self.places = [
            (registry, name, tensor)
            for module in modules for part in module.modules() for registry in (part._parameters, part._buffers)
            for name, tensor in registry.items() if tensor is not None
        ]  # fmt: skip

    def __enter__(self) -> Late:
        real = {}
        for registry, name, tensor in self.places:
            hollow = torch.full_like(tensor, math.nan) if tensor.is_floating_point() else tensor.clone()
            registry[name] = nn.Parameter(hollow, requires_grad=False) if isinstance(tensor, nn.Parameter) else hollow
            real[hollow.data_ptr()] = tensor.detach()
        return Late(real, self.careful)

    def __exit__(self, *error: object) -> None:
        for registry, name, tensor in self.places:
            assert registry[name].isnan().all() or not tensor.is_floating_point(), "the stand-in was put back"
            registry[name] = tensor


@given(st.integers(1, 80), st.floats(0, 1))
def test_blocks_that_stay_away_are_spread_evenly(count, share):
    away = scattered(count, share)
    assert len(away) == math.ceil(share * count) and sorted(set(away)) == away and all(0 <= i < count for i in away)
    gaps = {b - a for a, b in pairwise(away)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_what_is_on_the_device():
    assert on_device(7, (10, 20, 30, 40), ()) == 107
    assert on_device(7, (10, 20, 30, 40), (1, 3)) == 107, "two are away, but both may be there for a moment"
    assert on_device(7, (10, 20, 30, 40), (0, 1, 3)) == 97, "of three the smallest is not there while the others are"
    assert on_device(7, (10, 20, 30, 40), (0, 1, 2, 3)) == 7 + 70
    assert on_device(7, (), ()) == 7


def same(one: Tensor, other: Tensor) -> bool:
    """To the bit where each product has one kernel: what is away is computed by another way through a convolution."""
    return (one - other).norm() <= 1e-4 * other.norm() if KERNELS_DIFFER else torch.equal(one, other)


@HAS_MAIN_MEMORY
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_gradient_is_the_same_and_made_of_what_came(tiny, name, share):
    t = tiny(name)
    adapter, blocks = new_adapter(t), t.model.blocks()
    away = [blocks[i] for i in scattered(len(blocks), share)]
    steps = 3  # the first one learns in which order blocks are asked for

    def gradients() -> list[list[Tensor]]:
        found = []
        for seed in range(steps):
            adapter.zero_grad()
            one_loss(t, latents(t, 2), levels(t, 2), [1, 2], seed).backward()
            found.append([p.grad.clone() for p in adapter.parameters()])
        return found

    with t.model.hold(), adapter.attached(t.model.layers()):
        with checkpointed(blocks):
            plain = gradients()
        with Hollow(away) as late, away_on(away, late, t.model.base.modules()), checkpointed(blocks):
            again = gradients()
    assert any(g.abs().max() > 0 for g in plain[0])
    for one, other in zip(chain(*plain), chain(*again), strict=True):
        assert same(one, other)
    assert late.faults == [] and late.pinned == set()
    sizes = sorted((laid_out(b) for b in away), reverse=True)
    assert late.most <= sum(sizes[:2]), "two blocks at a time"
    assert not any("forward" in block.__dict__ for block in blocks)


def laid_out(block: nn.Module) -> int:
    """Bytes of a block in one piece of memory, every tensor from a multiple of 512 bytes on."""
    return sum(-(-tensor.nbytes // 512) * 512 for tensor in (*block.parameters(), *block.buffers()))


def away_on(blocks: list[nn.Module], late: Late, modules: Iterable[nn.Module] = (), **traffic: Any):
    return kept_away(blocks, modules, CPU, Traffic(range(len(blocks)), side=late, **traffic))


class Row:
    """A few frozen linear layers in a row, and what was done, in order."""

    def __init__(self, count: int = 4, width: int = 4):
        torch.manual_seed(0)
        self.blocks: list[nn.Module] = [nn.Linear(width, width) for _ in range(count)]
        self.width = width
        for block in self.blocks:
            for parameter in block.parameters():
                parameter.requires_grad_(False)
        self.numbers = {block.weight.data_ptr(): i for i, block in enumerate(self.blocks)}

    def forward(self) -> tuple[Tensor, Tensor]:
        x = torch.full((1, self.width), 0.5).requires_grad_()
        y = x
        for block in self.blocks:
            y = block(y).tanh()
        return x, y.sum()

    def step(self) -> Tensor:
        x, loss = self.forward()
        loss.backward()
        assert x.grad is not None
        return x.grad

    def brought(self, late: Late) -> list[int]:
        """Blocks in the order in which their copies were begun; what was noted before is forgotten."""
        found = [self.numbers[place] for lot in late.begun for place in lot if place in self.numbers]
        late.begun.clear()
        return found


@HAS_MAIN_MEMORY
def test_the_next_block_comes_while_one_works_forward_and_back():
    row, late = Row(), Late()
    plain = row.step()
    orders = []
    with away_on(row.blocks, late), checkpointed(row.blocks), late:
        for _ in range(3):
            assert torch.equal(row.step(), plain)
            orders.append(row.brought(late))
    # 3 stays for its second pass, and 0 for the next step; from the second step on each is begun a turn ahead, never twice.
    assert orders[0][:4] == [0, 1, 2, 3] and orders[0][-1] == 0
    assert orders[2] == [1, 2, 3, 2, 1, 0]
    assert late.faults == []


@HAS_MAIN_MEMORY
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_pass_without_a_gradient_between_does_not_confuse_the_order(count):
    """As a prediction of the base for output preservation: forward, forward without a gradient, back."""
    row, late = Row(count), Late()

    def step() -> None:
        _, loss = row.forward()
        with torch.no_grad():
            row.forward()
        loss.backward()

    with away_on(row.blocks, late), checkpointed(row.blocks), late:
        for _ in range(3):
            step()
        row.brought(late)
        step()
        known = row.brought(late)
    there = [*range(1, count), *range(count), *reversed(range(count - 1))]
    assert known == (there if count > 1 else []), "nothing is brought in vain"
    assert late.faults == []


@HAS_MAIN_MEMORY
def test_a_device_that_copies_too_early_would_be_found_out():
    row, late = Row(), Late(careful=False)
    with away_on(row.blocks, late), checkpointed(row.blocks), late:
        for _ in range(3):
            row.step()
    assert "what the main stream may still use is overwritten" in late.faults


@HAS_MAIN_MEMORY
def test_an_arrival_that_nobody_waits_for_would_be_found_out(monkeypatch):
    row, late = Row(), Late()
    monkeypatch.setattr(late, "wait", lambda copying: None)
    with away_on(row.blocks, late), checkpointed(row.blocks), late:
        assert row.step().isnan().all()
    assert any(fault.endswith("reads what has not arrived") for fault in late.faults)


@HAS_MAIN_MEMORY
def test_what_was_brought_in_vain_is_let_go_only_once_it_has_come():
    row, late = Row(), Late()
    with away_on(row.blocks, late), checkpointed(row.blocks), late:
        row.step()
        row.step()
        row.blocks[2](torch.zeros(1, 4))  # out of turn
        row.blocks[0](torch.zeros(1, 4))
    assert late.faults == [] and late.in_use == 0


@HAS_MAIN_MEMORY
def test_pages_are_locked_once_and_unlocked_afterwards():
    row, late = Row(), Late()
    with away_on(row.blocks, late):
        assert sorted(late.pinned) == sorted(t.data_ptr() for block in row.blocks for t in block.parameters())
    assert late.pinned == set()


@HAS_MAIN_MEMORY
def test_pages_that_cannot_be_locked_cost_speed_only_and_it_is_said_once():
    row, late = Row(), Late()
    plain, said = row.step(), []
    late.refuses_to_lock = True
    traffic = Traffic(range(4), said.append, side=late)
    for _ in range(2):
        with kept_away(row.blocks, [], CPU, traffic), checkpointed(row.blocks), late:
            assert torch.equal(row.step(), plain)
    assert len([line for line in said if "page-locked" in line]) == 1


@HAS_MAIN_MEMORY
@pytest.mark.parametrize(("speed", "ending"), [(1e9, "so nobody waits"), (4.0, "of its time")])
def test_transfers_are_measured_against_computing_and_it_is_said_once(speed, ending):
    row, late = Row(6), Late(bytes_per_ms=speed)
    said: list[str] = []
    traffic = Traffic(range(6), said.append, side=late)
    with kept_away(row.blocks, [], CPU, traffic), checkpointed(row.blocks), late:
        for _ in range(4):
            row.step()
    pace = traffic.pace
    assert pace is not None and len(said) == 1 and said[0].endswith(ending)
    of_one = sum(t.nbytes for t in row.blocks[0].parameters())
    assert pace.carried == 10 * of_one, "in a step each comes twice, but for the last and the first, which stay"
    assert pace.transfer == pytest.approx(pace.carried / speed / 1e3)
    assert pace.is_waited_for == (speed < 100) and pace.waiting <= pace.transfer
    with kept_away(row.blocks, [], CPU, traffic), checkpointed(row.blocks), late:
        row.step()
    assert len(said) == 1


def test_an_error_leaves_everything_where_it_was():
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("table", torch.ones(2))
            self.register_buffer("none", None)

        def forward(self, x: Tensor) -> Tensor:
            assert self.weight is not home[0] and isinstance(self.weight, nn.Parameter) and self.table is not home[1]
            raise KeyboardInterrupt

    block = Breaks()
    home = block.weight, block.table
    with pytest.raises(KeyboardInterrupt), away_on([block], Late(), block.modules()):
        block(torch.ones(2))
    assert block.weight is home[0] and block.table is home[1] and "forward" not in block.__dict__


@pytest.mark.parametrize("name", FAMILIES)
def test_a_held_model_with_blocks_away_gives_the_same_and_is_left_as_it_was(tiny, name):
    t = tiny(name)
    before, adapter = picture(t), new_adapter(t)
    found = []
    for share in (0.0, 1.0, 0.0):
        adapter.zero_grad()
        with t.model.hold(offload=share), adapter.attached(t.model.layers()), checkpointed(t.model.blocks()):
            one_loss(t, latents(t, 2), levels(t, 2), [1, 2]).backward()
        found.append([p.grad.clone() for p in adapter.parameters()])
    assert all(same(a, b) and same(a, c) for a, b, c in zip(*found, strict=True))
    assert torch.equal(picture(t), before)


@HAS_MAIN_MEMORY
def test_weights_that_the_host_left_in_main_memory_with_patches_to_be_laid_on(tiny):
    """As on a small GPU: layers that cast, and a LoRA of the graph that is merged anew in every call."""
    t = tiny("sd15")
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    shape = t.model.patcher.model_state_dict()[key].shape
    patcher = t.model.patcher.clone()
    patcher.add_patches({key: (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)}, 0.5)
    changed = type(t.model)(patcher)
    adapter = new_adapter(t)

    def gradients() -> list[Tensor]:
        adapter.zero_grad()
        with adapter.attached(changed.layers()), checkpointed(changed.blocks()):
            text = [changed.condition(t.conditioning(i), latents(t, 1), {}) for i in (1, 2)]
            changed.predict(latents(t, 2), levels(t, 2), text).square().mean().backward()
        return [p.grad.clone() for p in adapter.parameters()]

    with changed.hold():
        merged = gradients()
    patcher.detach()
    device = t.model.device
    with torch.inference_mode():
        patcher.patch_model(device, lowvram_model_memory=1)
    try:
        layer = patcher.get_model_object(key.removesuffix(".weight"))
        assert layer.weight_function and layer.comfy_cast_weights, "or this is not what it says"
        blocks = changed.blocks()
        with torch.inference_mode(False), torch.enable_grad():
            swapped = without_inference_tensors(patcher.model.modules())
            with Hollow(blocks) as late, away_on(blocks, late, patcher.model.modules()):
                on_the_way = gradients()
        put_back(swapped)
    finally:
        patcher.detach()
    far = [((a - b).norm() / a.norm().clamp_min(1e-9)).item() for a, b in zip(merged, on_the_way, strict=True)]
    assert max(far) < 1e-4
