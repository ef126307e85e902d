"""Blocks whose weights come for their own passes: the same gradient from nothing but what came, and never more than is said."""

from __future__ import annotations

import math
import weakref
from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.host.weights import put_back, without_inference_tensors
from lora_atelier.training.performance.block_offload import kept_away, on_device, scattered
from lora_atelier.training.performance.checkpointing import checkpointed
from lora_atelier.training.performance.memory import bytes_of
from torch import Tensor, nn

from ...conftest import KERNELS_DIFFER
from ..conftest import FAMILIES
from ..host.test_host import latents, levels, new_adapter, one_loss, picture

CPU = torch.device("cpu")


class Carrier:
    """Makes copies of ``real`` on ``device`` where it is asked for those of stand-ins, and knows which are still there."""

    def __init__(self, real: dict[int, Tensor], device: torch.device):
        self.real, self.device, self.alive, self.most = real, device, dict[int, int](), 0
        self.carried: list[int] = []

    def __call__(self, stand_in: Tensor) -> Tensor:
        place = stand_in.data_ptr()
        self.carried.append(place)
        copy = self.real.get(place, stand_in).to(self.device, copy=True)
        number = len(self.carried)
        self.alive[number] = copy.nbytes
        weakref.finalize(copy.untyped_storage(), self.alive.pop, number)
        self.most = max(self.most, sum(self.alive.values()))
        return copy


class Hollow:
    """Modules whose tensors are stand-ins full of NaN for as long as it lasts; the real ones are carried to ``device``."""

    def __init__(self, modules: list[nn.Module], device: torch.device):
        self.device = device
        self.places = [
            (registry, name, tensor)
            for module in modules for part in module.modules() for registry in (part._parameters, part._buffers)
            for name, tensor in registry.items() if tensor is not None
        ]  # fmt: skip

    def __enter__(self) -> Carrier:
        real = {}
        for registry, name, tensor in self.places:
            hollow = torch.full_like(tensor, math.nan) if tensor.is_floating_point() else tensor.clone()
            registry[name] = nn.Parameter(hollow, requires_grad=False) if isinstance(tensor, nn.Parameter) else hollow
            real[hollow.data_ptr()] = tensor.detach()
        return Carrier(real, self.device)

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
    assert on_device(7, (10, 20, 30, 40), 0) == 107
    assert on_device(7, (10, 20, 30, 40), 0.5) == 107, "two are away, but both may be there for a moment"
    assert on_device(7, (10, 20, 30, 40), 1) == 7 + 70
    assert on_device(7, (), 1) == 7


def same(one: Tensor, other: Tensor) -> bool:
    """To the bit where each product has one kernel: what is away is computed by another way through a convolution."""
    return (one - other).norm() <= 1e-4 * other.norm() if KERNELS_DIFFER else torch.equal(one, other)


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
        device = t.model.device
        with Hollow(away, device) as carry, kept_away(away, t.model.base.modules(), device, carry), checkpointed(blocks):
            again = gradients()
    assert any(g.abs().max() > 0 for g in plain[0])
    for one, other in zip(chain(*plain), chain(*again), strict=True):
        assert same(one, other)
    sizes = sorted((bytes_of([*b.parameters(), *b.buffers()]) for b in away), reverse=True)
    assert carry.most <= sum(sizes[:2]), "two blocks at a time"
    assert not any("forward" in block.__dict__ for block in blocks)


def test_the_next_block_comes_while_one_works():
    blocks = [nn.Linear(4, 4) for _ in range(4)]
    events: list[str] = []
    numbers = {block.weight.data_ptr(): i for i, block in enumerate(blocks)}

    def carry(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() in numbers:
            events.append(f"bring {numbers[tensor.data_ptr()]}")
        return tensor.clone()

    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: events.append(f"done {i}"))
        for parameter in block.parameters():
            parameter.requires_grad_(False)

    def step() -> list[str]:
        events.clear()
        x = torch.ones(1, 4, requires_grad=True)
        y = x
        for block in blocks:
            y = block(y)
        y.sum().backward()
        return list(events)

    with kept_away(blocks, [], CPU, carry), checkpointed(blocks):
        first, _, third = step(), step(), step()
    order = [e for e in first if e.startswith("done")]
    assert order == [f"done {i}" for i in (0, 1, 2, 3)], "hooks of the module itself stand outside the recomputed part"
    assert first[:3] == ["bring 0", "done 0", "bring 1"]
    # 0 has stayed since the last pass, 3 stays for its second one, and else each comes before the one ahead of it works.
    assert third == ["bring 1", "done 0", "bring 2", "done 1", "bring 3", "done 2", "done 3", "bring 2", "bring 1", "bring 0"]


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
    with pytest.raises(KeyboardInterrupt), kept_away([block], block.modules(), CPU, torch.clone):
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
            with Hollow(blocks, device) as carry, kept_away(blocks, patcher.model.modules(), device, carry):
                on_the_way = gradients()
        put_back(swapped)
    finally:
        patcher.detach()
    far = [((a - b).norm() / a.norm().clamp_min(1e-9)).item() for a, b in zip(merged, on_the_way, strict=True)]
    assert max(far) < 1e-4
