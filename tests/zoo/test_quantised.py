"""The quantised formats that ComfyUI loads: the gradient is that of the weights that they stand for, and nothing else changes.

A GPU's host multiplies in fp8, nvfp4 and mxfp8 where a CPU's unpacks; ``as_on_a_gpu`` makes it choose as there. Its products of nvfp4
and mxfp8 do not run on a CPU (``CPU does not support swizzle``), which shows that training does not need them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lora_atelier.training import memory
from lora_atelier.training.block_offload import kept_away
from lora_atelier.training.checkpointing import checkpointed
from lora_atelier.training.config import NetworkConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network import keys
from lora_atelier.training.network.attach import Adapter
from lora_atelier.training.network.frozen import LAYOUTS, layout_of
from torch import Tensor, nn

from .build import Animal, build
from .packing import FORMATS, Format, loaded, packed, present, stored
from .recipes import RECIPES, Recipe
from .slopes import named
from .test_precisions import far, learns
from .test_zoo import carriers, gradients, new_adapter, one_loss, picture

KINDS = [recipe for recipe in RECIPES if recipe.name in ("SD 3", "Flux dev")]
NEAR = 1e-5
"""Largest relative distance of one parameter's gradient, computed in float32, from that beside the weights that are meant."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model in one format, and the same with the weights that it stands for in float32."""

    form: Format
    recipe: Recipe
    file: dict[str, Tensor]
    metadata: dict[str, str] | None
    same: Animal

    def load(self) -> Animal:
        return loaded(self.recipe, self.file, self.metadata, self.form.options)


@pytest.fixture(scope="module", params=[(f, r) for f in FORMATS for r in KINDS], ids=lambda one: f"{one[0].name} / {one[1].name}")
def case(request, comfyui) -> Case:
    form, recipe = request.param
    present(form)
    if not (whole := build(recipe)).loaded:
        pytest.skip(f"this ComfyUI loads {recipe.name} in its published size only")
    file, metadata, meant = stored(form, {n: t.clone() for n, t in whole.model.base.diffusion_model.state_dict().items()})
    return Case(form, recipe, file, metadata, loaded(recipe, meant))


@pytest.fixture
def as_on_a_gpu(comfyui, monkeypatch):
    """The host takes its CPU for one with products in all its formats."""
    import comfy.model_management

    for name in ("supports_fp8_compute", "supports_nvfp4_compute", "supports_mxfp8_compute"):
        if hasattr(comfy.model_management, name):
            monkeypatch.setattr(comfy.model_management, name, lambda _device=None: True)


def worst(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest relative distance of a parameter's gradient."""
    assert [name for name, g in one.items() if not g.any()] == []
    return max(((one[name] - other[name]).norm() / one[name].norm()).item() for name in one)


def quantised(animal: Animal) -> dict[str, nn.Module]:
    """Layers whose weight is not the number that counts."""
    scaled = {n: m for n, m in animal.model.layers().items() if getattr(m, "scale_weight", None) is not None}
    return scaled | {n: m for n, m in animal.model.layers().items() if layout_of(m.weight)}


def in_float32(animal: Animal) -> Animal:
    return dataclasses.replace(animal, model=animal.model.for_training(torch.float32))


def test_the_gradient_beside_quantised_weights(case, record_property):
    """Of every parameter, and so through all the quantised layers behind it; with recomputed blocks too; in bf16 as near as bf16."""
    animal = case.load()
    animal.model.check()
    layers = quantised(animal)
    assert case.form.options or len(layers) >= sum(packed(name, t) for name, t in case.file.items())
    right = gradients(case.same, new_adapter(case.same), [0])
    held = in_float32(animal)
    distance = worst(right, gradients(held, new_adapter(held), [0]))
    assert distance < NEAR
    assert worst(right, gradients(held, new_adapter(held), [0], again=True)) < NEAR

    half, same = (dataclasses.replace(a, model=a.model.for_training(torch.bfloat16)) for a in (animal, case.same))
    found, usual = (far(right, gradients(a, new_adapter(a), [0])) for a in (half, same))
    assert found < 1.3 * usual
    record_property("format", case.form.name)
    record_property("distance", distance)
    record_property("layers", len(layers))
    record_property("in_bf16", found)


def test_the_gradient_is_no_other_on_a_gpu(case, as_on_a_gpu, record_property):
    """Where the host multiplies in the format itself; and how far such products are from the weights that they are made of."""
    animal = case.load()
    multiplies = [m for m in quantised(animal).values() if getattr(m, "_full_precision_mm", False) is False]
    assert multiplies or not case.form.algorithm
    right = gradients(case.same, new_adapter(case.same), [0])
    assert worst(right, gradients(animal, new_adapter(animal), [0])) < NEAR
    with torch.no_grad(), animal.model.hold(), new_adapter(animal).attached(animal.model.layers()):
        without = one_loss(animal, [0]).item()
    with animal.model.hold(), new_adapter(animal).attached(animal.model.layers()):
        assert one_loss(animal, [0]).item() == without, "a pass without gradients is compared with those that have them"
    if case.form.algorithm not in ("nvfp4", "mxfp8"):
        drawn, meant = picture(animal), picture(case.same)
        record_property("products", ((drawn - meant).norm() / meant.norm()).item())


@pytest.mark.parametrize("kind", [{"weight_decompose": True}, {"algorithm": "lokr"}, {"algorithm": "loha"}], ids=str)
def test_other_adapters(case, kind):
    def one(animal: Animal) -> dict[str, Tensor]:
        adapter = Adapter.fresh(new_adapter_layers(animal), NetworkConfig(rank=2, alpha=2.0, **kind), 3)
        stream = torch.Generator().manual_seed(5)
        for parameter in adapter.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=stream)
        return gradients(animal, adapter, [0])

    assert worst(one(case.same), one(in_float32(case.load()))) < NEAR


def new_adapter_layers(animal: Animal) -> dict[str, nn.Module]:
    return {name: carriers(animal)[name] for name in new_adapter(animal).branches}


def test_blocks_away(case, monkeypatch):
    """Copies of packed weights that come for their own passes; nothing else is read, and the home tensors stay."""
    animal = in_float32(case.load())
    right = gradients(case.same, new_adapter(case.same), [0])
    came: list[str] = []

    def copied(tensor: Tensor) -> Tensor:
        came.append(layout_of(tensor))
        return tensor.clone()

    monkeypatch.setattr(
        "lora_atelier.training.host.model.kept_away", lambda blocks, roots, device: kept_away(blocks, roots, device, copied)
    )
    home = {name: p for name, p in animal.model.base.named_parameters()}
    animal.model.keep_away(1.0)
    assert worst(right, gradients(animal, new_adapter(animal), [0], again=True)) < NEAR
    assert len(came) > 2 * len(list(animal.model.blocks()[0].parameters()))
    assert any(came) == any(layout_of(p) for p in home.values())
    assert all(p is home[name] for name, p in animal.model.base.named_parameters())


def test_it_learns_and_leaves_everything_as_it_was(case):
    animal = case.load()
    weights = dict(animal.model.base.named_parameters())
    assert all(p.is_inference() for p in weights.values()), "as a graph makes them"
    numbers = {name: [part.clone() for part in parts_of(p)] for name, p in weights.items()}
    before, identity = picture(animal), animal.model.identity()
    assert learns(in_float32(animal))
    assert torch.equal(picture(animal), before) and animal.model.identity() == identity
    for name, parameter in animal.model.base.named_parameters():
        assert parameter is weights[name]
        assert all(torch.equal(*pair) for pair in zip(map(raw, parts_of(parameter)), map(raw, numbers[name]), strict=True)), name
    assert not [m for m in animal.model.base.modules() if "forward" in m.__dict__ or "expert_linear" in m.__dict__]


def parts_of(tensor: Any) -> list[Tensor]:
    """A packed tensor's numbers and scales, or an ordinary tensor."""
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]] if layout_of(tensor) else [tensor.detach()]


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.element_size() == 1 else tensor


def test_the_file_beside_quantised_weights(case, record_property, caplog):
    """The stock loader packs the weight anew with the LoRA in it, so that it draws the LoRA and the format's own rounding."""
    animal = case.load()
    adapter = new_adapter(animal)
    before = picture(animal)
    with adapter.attached(animal.model.layers()):
        live = picture(animal)
    tensors = keys.to_file(adapter, animal.model.lora_names(), animal.model.family, torch.float32)
    identity = animal.model.identity()
    with caplog.at_level("WARNING"), torch.inference_mode():
        patched, _ = animal.model.with_lora(None, tensors, 1.0)
    assert "not loaded" not in caplog.text.lower()
    stock = picture(dataclasses.replace(animal, model=type(animal.model)(patched)))
    assert animal.model.identity() == identity, "while the patches are in the shared weights"
    assert torch.equal(picture(animal), before)
    effect = ((stock - live).norm() / (live - before).norm()).item()
    record_property("redrawn", effect)
    assert effect < redrawn_within(case.form)


def redrawn_within(form: Format) -> float:
    """How far from the LoRA's own effect the stock loader's may be, for the rounding of a weight that is packed anew."""
    bits = {"nvfp4": 4, "mxfp8": 8, "convrot_w4a4": 4, "int8_tensorwise": 8}.get(form.algorithm, 8)
    return 1.0 if bits == 4 else 0.5


def test_no_second_copy_of_the_weights_is_kept(case):
    """Autograd keeps as many bytes besides the weights as beside ordinary ones in float32, of which it keeps none."""

    def kept(animal: Animal) -> int:
        adapter = new_adapter(animal)
        parameters = [*animal.model.weights(), *adapter.parameters()]
        with animal.model.hold(), adapter.attached(animal.model.layers()):
            return memory.measure([], parameters, lambda: one_loss(animal, [0])).needed(TrainingConfig("any"), 1)

    animal = in_float32(case.load())
    smallest = min(4 * layer.in_features * layer.out_features for layer in quantised(animal).values()) if quantised(animal) else 0
    everything = 4 * sum(layer.in_features * layer.out_features for layer in quantised(animal).values())
    # Beside a packed layer an adapter is a step of its own, which keeps the layer's input and its narrow product.
    assert kept(animal) - kept(case.same) <= max(0.05 * everything, smallest // 2)


def test_it_is_told_from_others_and_known_again(case):
    animal, again = case.load(), case.load()
    assert animal.model.identity() == again.model.identity() != case.same.model.identity()
    for change in changes(case):
        file = {name: change(name, tensor) for name, tensor in case.file.items()}
        other = loaded(case.recipe, file, case.metadata, case.form.options)
        assert other.model.identity() != animal.model.identity()


def changes(case: Case) -> list[Callable[[str, Tensor], Tensor]]:
    """Other files of the same shapes: one number type, and scales alone."""
    found: list[Callable[[str, Tensor], Tensor]] = [lambda name, t: t.flip(0) if name.endswith(".weight") and t.ndim == 2 else t]
    if any("scale" in name and ".weight_scale" in name or ".scale_weight" in name for name in case.file):
        found.append(lambda name, t: t * 2 if "scale" in name and t.dtype == torch.float32 and "weight" in name else t)
    return found
