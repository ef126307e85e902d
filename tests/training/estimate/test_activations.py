"""What a model of shapes foretells, against the same pass with numbers."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training import families, host
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.estimate import activations
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.targets import select
from lora_atelier.training.performance import memory
from lora_atelier.training.tensors import references
from lora_atelier.training.tensors.safetensors_header import read_header

from ... import tiny_large, tiny_models
from ..conftest import FAMILIES

SIZE = (128, 96)
NETWORKS = [
    NetworkConfig(8),
    NetworkConfig(8, include="*"),
    NetworkConfig(8, weight_decompose=True),
    NetworkConfig(4, algorithm="LoKr"),
]


@pytest.fixture(scope="module")
def flux(comfyui, tmp_path_factory):
    """(file, MODEL) of a small Flux."""
    import comfy.sd

    path = tiny_large.flux(tmp_path_factory.mktemp("flux") / "flux.safetensors", 0)
    with torch.inference_mode():
        return path, host.Model(comfy.sd.load_diffusion_model(str(path)))


@pytest.fixture
def model(request, tiny):
    """(file, MODEL) of the family in the parameter."""
    if request.param == "flux":
        return request.getfixturevalue("flux")
    return tiny_models.cached(request.param), tiny(request.param).model


def measured(model, outline, network: NetworkConfig, controls=()) -> memory.Activations:
    """The pass that is made before a run's first step."""
    layers = select({name: layer for name, layer in model.layers().items() if name in model.lora_names()}, network)
    layers = {name: layers[name] for name in families.family_named(model.family).without_untrainable(layers)}
    adapter = Adapter.fresh(layers, network, 0).to(model.device)
    text = {name: torch.zeros(tensor.shape) for name, tensor in outline.text(len(controls)).items()}
    text |= references.numbered([torch.zeros(1, 16, height // 8, width // 8, device=model.device) for width, height in controls])

    def forward() -> torch.Tensor:
        x = model.latents_in(torch.zeros(outline.latents(SIZE).shape, device=model.device))
        return model.predict(x, torch.full((1,), 0.5, device=model.device), [model.condition(text, x, {})]).square().mean()

    with model.hold(), adapter.attached(layers):
        forward()  # the first pass of a form only looks what it needs
        return memory.measure(model.blocks(), [*model.weights(), *adapter.parameters()], forward)


@pytest.mark.parametrize("network", NETWORKS, ids=["attention", "every layer", "DoRA", "LoKr"])
@pytest.mark.parametrize("model", [*FAMILIES, "flux"], indirect=True)
def test_shapes_foretell_what_is_measured_with_numbers(model, network):
    if network.algorithm == "LoKr":
        pytest.importorskip("lycoris")
    path, loaded = model
    outline = host.outline(read_header(path))
    expected = measured(loaded, outline, network)
    found = activations.activations(outline, network, SIZE)
    assert found is not None
    for part in ("inside", "outside", "inputs", "largest"):
        assert getattr(found, part) == pytest.approx(getattr(expected, part), rel=0.1, abs=5000), part


def test_control_pictures_beside_a_picture_are_counted(flux):
    """Flux's tokens are 16 x 16 pixels: 48 of the picture, and as many again and 32 more of the control pictures."""
    path, loaded = flux
    outline = host.outline(read_header(path))
    controls = [SIZE, (128, 64)]
    expected = measured(loaded, outline, NetworkConfig(8), controls)
    alone, found = (activations.activations(outline, NetworkConfig(8), SIZE, shown) for shown in ((), controls))
    for part in ("inside", "outside", "inputs", "largest"):
        assert getattr(found, part) == pytest.approx(getattr(expected, part), rel=0.1, abs=5000), part
    words = outline.text()["cond"].shape[1]
    assert found.inputs / alone.inputs == pytest.approx((words + 48 + 48 + 32) / (words + 48), rel=0.05)


def test_half_precision_keeps_half(tiny):
    header = read_header(tiny_models.cached("sd3"))
    full, half, usual = (
        activations.activations(host.outline(header, dtype), NetworkConfig(8), (256, 256))
        for dtype in (torch.float32, torch.bfloat16, None)
    )
    assert 0.4 < half.inside / full.inside < 0.8
    assert usual == full, "a CPU computes in fp32"


def test_a_large_picture_of_a_large_model_takes_neither_memory_nor_long(comfyui, tmp_path, tiny):
    """Its attention's probabilities alone would be 16 GB at this size."""
    outline = host.outline(read_header(tiny_models.cached("sdxl_unet")), torch.bfloat16)
    found = activations.activations(outline, NetworkConfig(128), (4096, 4096))
    assert found.inside > 10**9


def test_of_a_family_whose_texts_are_not_known_nothing_is_said(tiny, monkeypatch):
    outline = host.outline(read_header(tiny_models.cached("sd15")))
    monkeypatch.setattr(host.Outline, "text", lambda self, seen=0: None)
    assert activations.activations(outline, NetworkConfig(8), SIZE) is None


@pytest.mark.parametrize("asks", [lambda x: x * x.sum().item(), lambda x: x * x.missing])
def test_a_network_that_cannot_do_without_numbers_is_no_error(tiny, monkeypatch, asks):
    outline = host.outline(read_header(tiny_models.cached("sd15")))
    monkeypatch.setattr(host.Outline, "latents_in", lambda self, x: asks(x))
    assert activations.activations(outline, NetworkConfig(8), SIZE) is None
