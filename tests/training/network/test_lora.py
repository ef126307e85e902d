"""The adapter against PEFT: same module, same numbers."""

from __future__ import annotations

import math

import pytest
import torch
from lora_atelier.training.config import NetworkConfig, OptimizerConfig
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.lora import LoRALayer
from lora_atelier.training.optim import optimizers, schedules
from torch import nn


class Small(nn.Module):
    """A convolution and two linear layers, so that both kinds of adapter are in one gradient."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(6, 10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x):
        return self.fc2(torch.nn.functional.silu(self.fc1(self.conv(x).mean((2, 3)))))


def same_adapters(rank: int, alpha: float):
    """(our model, our adapter, PEFT's model) with equal weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    ours = Small()
    names = ["conv", "fc1", "fc2"]
    theirs = Small()
    theirs.load_state_dict(ours.state_dict())
    theirs = get_peft_model(theirs, LoraConfig(r=rank, lora_alpha=alpha, target_modules=names))
    adapter = Adapter.fresh({n: getattr(ours, n) for n in names}, NetworkConfig(rank, alpha), seed=1)
    ours.requires_grad_(False)
    for name, branch in adapter.branches.items():
        branch.up.data = torch.randn(branch.up.shape) * 0.1
        layer = getattr(theirs.base_model.model, name)
        layer.lora_A["default"].weight.data = branch.down.data.clone()
        layer.lora_B["default"].weight.data = branch.up.data.clone()
    return ours, adapter, theirs


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 2.0), (8, 1.0)])
def test_outputs_and_gradients_are_those_of_peft(rank, alpha):
    ours, adapter, theirs = same_adapters(rank, alpha)
    x, wanted = torch.randn(5, 3, 8, 8), torch.randn(5, 4)
    with adapter.attached(dict(ours.named_modules())):
        out = ours(x)
        (out - wanted).square().mean().backward()
    expected = theirs(x)
    (expected - wanted).square().mean().backward()
    assert torch.allclose(out, expected, atol=1e-6)
    for name, branch in adapter.branches.items():
        layer = getattr(theirs.base_model.model, name)
        for mine, other in ((branch.down, layer.lora_A["default"].weight), (branch.up, layer.lora_B["default"].weight)):
            assert (mine.grad - other.grad).norm() <= 1e-5 * other.grad.norm()


def test_a_whole_training_ends_at_pefts_weights():
    ours, adapter, theirs = same_adapters(4, 2.0)
    config = OptimizerConfig(learning_rate=1e-2, schedule="constant")
    mine = optimizers.build(config, [(adapter.parameters(), config.peak)])
    other = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01)
    x, wanted = torch.randn(5, 3, 8, 8), torch.randn(5, 4)
    for _ in range(50):
        with adapter.attached(dict(ours.named_modules())):
            (ours(x) - wanted).square().mean().backward()
        (theirs(x) - wanted).square().mean().backward()
        for optimizer in (mine, other):
            optimizer.step()
            optimizer.zero_grad()
    for name, branch in adapter.branches.items():
        layer = getattr(theirs.base_model.model, name)
        assert torch.allclose(branch.up, layer.lora_B["default"].weight, atol=1e-5)


def test_a_new_adapter_changes_nothing_and_starts_kaiming_uniform():
    layer = nn.Linear(400, 30)
    branch = LoRALayer(layer, 64, 1.0, torch.Generator().manual_seed(0))
    assert not branch.up.any()
    expected = torch.empty(64, 400)
    nn.init.kaiming_uniform_(expected, a=math.sqrt(5))
    assert branch.down.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=1e-2)
    assert branch.down.std().item() == pytest.approx(expected.std().item(), rel=2e-2)


def test_strength_is_a_number_or_one_number_a_picture():
    ours, adapter, _ = same_adapters(4, 4.0)
    x = torch.randn(3, 3, 8, 8)
    layers = dict(ours.named_modules())
    plain = ours(x)
    singles = []
    with adapter.attached(layers):
        for strength in (0.0, 0.5, 1.0):
            adapter.strength = strength
            singles.append(ours(x))
        adapter.strength = torch.tensor([0.0, 0.5, 1.0])
        rows = ours(x)
    assert torch.equal(singles[0], plain)
    for i, single in enumerate(singles):
        assert torch.allclose(rows[i], single[i], atol=1e-6)
    assert torch.equal(ours(x), plain)


def test_attaching_to_a_missing_layer_leaves_no_hook_behind():
    ours, adapter, _ = same_adapters(4, 4.0)
    layers = {"conv": ours.conv, "fc1": ours.fc1}
    with pytest.raises(KeyError), adapter.attached(layers):
        pass
    assert not any(m._forward_hooks for m in ours.modules())


def test_schedules_follow_torch():
    """torch's own schedulers, stepped one by one, are the reference."""
    peak, total, warmup = 2e-3, 40, 0
    for name, make in (
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total)),
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1e-12, total)),
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0, total)),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
        reference = make(optimizer)
        config = OptimizerConfig(learning_rate=peak, schedule=name, warmup_steps=warmup)
        for step in range(total):
            assert peak * schedules.factor(config, step, total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
            optimizer.step()
            reference.step()


def test_warmup_rises_to_the_peak_and_hands_over():
    config = OptimizerConfig(schedule="linear", warmup_steps=4)
    assert [schedules.factor(config, s, 8) for s in range(8)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
