"""Every algorithm against PEFT's on the same layers: outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.network.adapter import Adapter
from torch import nn

NAMES = ["conv", "fc1", "fc2"]


class Small(nn.Module):
    """A convolution with a stride and two linear layers, wide enough for a LoKr of rank 2 to be decomposed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 30, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(30, 42)
        self.fc2 = nn.Linear(42, 20, bias=False)

    def forward(self, x):
        return self.fc2(torch.nn.functional.silu(self.fc1(self.conv(x).mean((2, 3)))))


def beside_peft(ours: NetworkConfig, theirs):
    """(our model, our adapter, PEFT's model) with equal frozen weights."""
    from peft import get_peft_model

    torch.manual_seed(0)
    model, other = Small(), Small()
    other.load_state_dict(model.state_dict())
    model.requires_grad_(False)
    adapter = Adapter.fresh({n: getattr(model, n) for n in NAMES}, ours, seed=1)
    for p in adapter.parameters():
        p.data += torch.randn(p.shape) * 0.2 * (p.data.std() if p.data.any() else 1.0)
    return model, adapter, get_peft_model(other, theirs)


def assert_same(model, adapter, theirs, pairs) -> None:
    """``pairs`` gives for a branch and PEFT's layer the parameters that mean the same; ours are copied into theirs first."""
    for name, branch in adapter.branches.items():
        for mine, other in pairs(branch, getattr(theirs.base_model.model, name)):
            other.data = mine.data.reshape(other.shape).clone()
    x, wanted = torch.randn(5, 12, 8, 8), torch.randn(5, 20)
    with adapter.attached(dict(model.named_modules())):
        out = model(x)
        (out - wanted).square().mean().backward()
    expected = theirs(x)
    (expected - wanted).square().mean().backward()
    assert (expected - model(x)).norm() > 1e-2 * expected.norm()  # the adapter does something
    assert (out - expected).norm() <= 1e-5 * expected.norm()
    checked = 0
    for name, branch in adapter.branches.items():
        for mine, other in pairs(branch, getattr(theirs.base_model.model, name)):
            assert (mine.grad - other.grad.reshape(mine.shape)).norm() <= 1e-5 * other.grad.norm()
            checked += 1
    assert checked == len(list(adapter.parameters()))


def low_rank(branch, layer):
    out = [(branch.down, layer.lora_A["default"].weight), (branch.up, layer.lora_B["default"].weight)]
    if branch.magnitude is not None:
        out.append((branch.magnitude, layer.lora_magnitude_vector["default"].weight))
    return out


@pytest.mark.parametrize("alpha", [4.0, 1.0])
@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("decomposed", [False, True])
def test_lora_dora_and_rslora(alpha, stabilised, decomposed):
    from peft import LoraConfig

    ours = NetworkConfig(4, alpha, weight_decompose=decomposed, rank_stabilised=stabilised)
    theirs = LoraConfig(r=4, lora_alpha=alpha, use_dora=decomposed, use_rslora=stabilised, target_modules=NAMES)
    assert_same(*beside_peft(ours, theirs), low_rank)


def test_loha():
    from peft import LoHaConfig

    def pairs(branch, layer):
        return [(getattr(branch, n), getattr(layer, f"hada_{n}")["default"]) for n in ("w1_a", "w1_b", "w2_a", "w2_b")]

    ours = NetworkConfig(3, 2.0, algorithm="LoHa")
    assert_same(*beside_peft(ours, LoHaConfig(r=3, alpha=2, target_modules=NAMES)), pairs)


@pytest.mark.parametrize("factor", [-1, 2])
def test_lokr(factor):
    from peft import LoKrConfig

    def pairs(branch, layer):
        return [(getattr(branch, n), getattr(layer, f"lokr_{n}")["default"]) for n in ("w1", "w2_a", "w2_b")]

    ours = NetworkConfig(2, 3.0, algorithm="LoKr", lokr_factor=factor)
    theirs = LoKrConfig(r=2, alpha=3, decompose_factor=factor, target_modules=NAMES)
    assert_same(*beside_peft(ours, theirs), pairs)
