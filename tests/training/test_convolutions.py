"""Convolutions as products: the same numbers and gradients as torch's own, only where they pay, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.convolutions import as_products, product_suits
from torch import nn

from .test_host import latents, levels, new_adapter, one_loss


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), inputs=st.integers(1, 5), outputs=st.integers(1, 5), kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2), padding=st.integers(0, 2), bias=st.booleans(), size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)  # fmt: skip
def test_the_product_is_the_convolution_and_so_is_its_gradient(batch, inputs, outputs, kernel, stride, padding, bias, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
    x = torch.randn(batch, inputs, *size, requires_grad=True)
    arguments = (x.double(), layer.weight.double(), layer.bias.double() if bias else None, stride, padding)
    wanted = F.conv2d(*arguments)
    pull = torch.randn_like(wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_atelier.training.convolutions.LARGER", 0)
        with as_products(nn.Sequential(layer)):
            found = layer(x)
    assert type(found.grad_fn).__name__.startswith("SlowConv2D")
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    mine, theirs = (torch.autograd.grad(y, x, p)[0] for y, p in ((found, pull.float()), (wanted, pull)))
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_it_is_taken_where_the_kernels_outweigh_the_picture():
    kernels = torch.empty(64, 64, 3, 3)
    assert product_suits(torch.empty(1, 64, 4, 4), kernels)
    assert not product_suits(torch.empty(1, 64, 32, 32), kernels)
    assert not product_suits(torch.empty(32, 64, 4, 4), kernels), "a batch counts as its pictures"
    assert not product_suits(torch.empty(1, 64, 4, 4, dtype=torch.bfloat16), kernels.bfloat16())


def test_other_convolutions_stay_as_they_are():
    layers = [
        nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.Conv1d(4, 4, 3), nn.Linear(4, 4),
    ]  # fmt: skip
    with as_products(nn.ModuleList(layers)):
        assert not any("_conv_forward" in layer.__dict__ for layer in layers)


def test_nothing_stays_on_the_layers_also_after_an_error():
    layer = nn.Conv2d(4, 4, 3)
    with pytest.raises(RuntimeError), as_products(layer):
        assert "_conv_forward" in layer.__dict__
        raise RuntimeError
    assert "_conv_forward" not in layer.__dict__


def test_a_held_model_uses_it_and_learns_the_same(tiny):
    t = tiny("sd15")
    adapter = new_adapter(t, "all")
    convolutions = [m for m in t.model.base.diffusion_model.modules() if isinstance(m, nn.Conv2d)]

    def gradients() -> tuple[torch.Tensor, ...]:
        with t.model.hold(), adapter.attached(t.model.layers()):
            assert all("_conv_forward" in m.__dict__ for m in convolutions)
            return torch.autograd.grad(one_loss(t, latents(t, 1), levels(t, 1), [1]), list(adapter.parameters()))

    found = gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_atelier.training.convolutions.LARGER", float("inf"))
        wanted = gradients()
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-9
    assert not any("_conv_forward" in m.__dict__ for m in convolutions)
