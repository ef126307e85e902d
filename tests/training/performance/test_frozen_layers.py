"""Frozen layers: the same numbers and gradients as the host's own, for less memory and time, and nothing left behind."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.config import TrainingConfig
from lora_atelier.training.network import fused_linear
from lora_atelier.training.performance import memory
from lora_atelier.training.performance.frozen_layers import lightened, product_suits
from lora_atelier.training.performance.thrift import Thrift
from torch import nn

from ... import tiny_models
from ..conftest import conditioning
from ..host.test_host import latents, levels, new_adapter, one_loss

CPU = torch.device("cpu")


def light(root: nn.Module) -> AbstractContextManager[None]:
    return lightened(root.modules(), torch.float32, CPU)


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
        patch.setattr("lora_atelier.training.performance.frozen_layers.LARGER", 0)
        with light(nn.Sequential(layer)):
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
    with light(nn.ModuleList(layers)):
        assert not any("_conv_forward" in layer.__dict__ for layer in layers)


def test_nothing_stays_on_the_layers_also_after_an_error():
    layer = nn.Conv2d(4, 4, 3)
    with pytest.raises(RuntimeError), light(layer):
        assert "_conv_forward" in layer.__dict__
        raise RuntimeError
    assert "_conv_forward" not in layer.__dict__


@pytest.mark.cpu_only("convolutions as products are for CPUs, whose own lay large kernels out anew")
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
        patch.setattr("lora_atelier.training.performance.frozen_layers.LARGER", float("inf"))
        wanted = gradients()
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-9
    assert not any("_conv_forward" in m.__dict__ for m in convolutions)


def converting_layers(stored: torch.dtype) -> nn.ModuleList:
    """Two convolutions and a Linear of the host's, stored in ``stored`` and computing in what they are given."""
    import comfy.ops

    make, stream = comfy.ops.manual_cast, torch.Generator().manual_seed(0)
    layers = nn.ModuleList([make.Conv2d(8, 16, 3, padding=1, stride=2), make.Conv2d(16, 16, 3, padding=1), make.Linear(16, 24)])
    for layer in layers:
        for part, dtype in (("weight", stored), ("bias", torch.bfloat16)):
            values = torch.randn(getattr(layer, part).shape, generator=stream) * 0.3
            setattr(layer, part, nn.Parameter(values.to(dtype), requires_grad=False))
    return layers


def through(layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    return layers[2](layers[1](layers[0](x)).movedim(1, -1))


def pictures() -> torch.Tensor:
    return torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("larger", [0, float("inf")], ids=["product", "convolution"])
def test_a_weight_in_another_format_is_kept_as_it_is_stored(comfyui, monkeypatch, stored, larger):
    """Numbers and gradient as from the host's own layers, and no converted weight is kept between."""
    monkeypatch.setattr("lora_atelier.training.performance.frozen_layers.LARGER", larger)
    layers = converting_layers(stored)
    x = pictures()

    def run() -> tuple[torch.Tensor, torch.Tensor, int]:
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = through(layers, x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        own = {p.data_ptr() for p in layers.parameters()}
        return out.detach(), gradient, sum(size for place, size in kept.items() if place not in own)

    with light(layers):
        out, gradient, kept = run()
    usual_out, usual_gradient, usually_kept = run()
    assert torch.equal(out, usual_out) if larger else torch.allclose(out, usual_out, rtol=1e-4, atol=1e-4)
    assert (gradient - usual_gradient).norm() <= 1e-5 * usual_gradient.norm()
    weights = 4 * sum(layer.weight.numel() for layer in layers)
    assert usually_kept >= weights, "the host's own layers keep what they converted"
    assert kept <= usually_kept - weights
    assert not any({"forward", "_conv_forward"} & layer.__dict__.keys() for layer in layers)


def test_what_the_host_does_to_a_weight_on_the_way_counts(comfyui):
    """A patch that it lays on in every pass is in the gradient as well."""
    layers, x = converting_layers(torch.bfloat16), pictures()
    for layer in layers:
        layer.weight_function = [lambda weight: weight * 1.5]
    with light(layers):
        (found,) = torch.autograd.grad(through(layers, x).square().sum(), x)
    (wanted,) = torch.autograd.grad(through(layers, x).square().sum(), x)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.fixture(scope="module")
def stored_in_bf16(comfyui) -> SimpleNamespace:
    """A tiny SDXL as a loader gives it on a CPU: stored in bf16, computing in float32."""
    import comfy.sd
    from lora_atelier.training import host

    with torch.inference_mode():
        path = str(tiny_models.cached("sdxl_unet"))
        patcher = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.bfloat16})
    return SimpleNamespace(
        name="sdxl_unet", model=host.Model(patcher), conditioning=lambda seed: conditioning("sdxl_unet", seed), channels=4
    )


def test_a_model_stored_in_another_format_learns_the_same(stored_in_bf16):
    """An adapter still is one step with its layer, and autograd holds less than before by the converted weights."""
    t = stored_in_bf16
    adapter, layers = new_adapter(t, "attention"), t.model.layers()
    assert t.model.compute_dtype == torch.float32

    def gradients() -> list[torch.Tensor]:
        with t.model.hold():
            assert all(fused_linear.known(layer) for layer in layers.values() if isinstance(layer, nn.Linear))
            with adapter.attached(layers):
                loss = one_loss(t, latents(t, 1), levels(t, 1), [1])
                return list(torch.autograd.grad(loss, list(adapter.parameters())))

    def kept() -> int:
        parameters = [*t.model.weights(), *adapter.parameters()]
        with t.model.hold(), adapter.attached(layers):
            found = memory.measure([], parameters, lambda: one_loss(t, latents(t, 1), levels(t, 1), [1]))
        return found.needed(Thrift(0, 0), TrainingConfig("any"), 1)

    found, less = gradients(), kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_atelier.training.host.holding.lightened", lambda *_: nullcontext())
        wanted, more = gradients(), kept()
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-9
    others = [m for name, m in layers.items() if name not in adapter.branches and m.weight.dtype == torch.bfloat16]
    # Nothing is kept anyway of those before the first that learns.
    assert more - less >= 0.5 * 4 * sum(m.weight.numel() for m in others)
