"""The quantised formats that ComfyUI loads: the gradient is that of the weights that they stand for, and nothing else changes.

On a GPU the host multiplies in fp8, nvfp4 and mxfp8 where it unpacks on a CPU; ``as_on_a_gpu`` makes it choose as there. Its
products of nvfp4 and mxfp8 do not run on a CPU (``CPU does not support swizzle``), so that training there would not go by them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.config import NetworkConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network import lora_file
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.base_layer import LAYOUTS, layout_of
from lora_atelier.training.network.lora import LoRALayer
from lora_atelier.training.performance import memory
from lora_atelier.training.performance.quantised_layers import unpacking
from lora_atelier.training.performance.thrift import Thrift
from torch import Tensor, nn

from ..conftest import KERNELS_DIFFER
from . import test_texts, texts
from .build import Animal, build
from .packing import FORMATS, Format, loaded, packed, present, stored
from .recipes import RECIPES, Recipe
from .test_precisions import far, learns
from .test_zoo import carriers, gradients, new_adapter, one_loss
from .test_zoo import picture as drawn

KINDS = [recipe for recipe in RECIPES if recipe.name in ("SD 3", "Flux dev")]
NEAR = 2e-5
"""Largest relative distance of one parameter's gradient, computed in float32, from that beside the weights that are meant."""

ALIKE = {
    "fp8 e4m3 fast, by the loader", "fp8 e5m2, by the loader", "fp8 scaled, older files, fp8 products", "fp8 e5m2 scaled",
    "int8, a scale a row", "convrot_w4a4, int8 products",
}  # fmt: skip
ROUNDED = {
    "float8_e4m3fn": 0.2, "torch.float8_e4m3fn": 0.2, "None": 0.2, "float8_e5m2": 0.35, "torch.float8_e5m2": 0.35, "mxfp8": 0.2,
    "int8_tensorwise": 0.1, "nvfp4": 0.6, "convrot_w4a4": 0.6,
}  # fmt: skip
"""Largest share of a LoRA's effect by which the stock loader's differs from the live adapter's, where it changes a third."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model in one format, and the same with the weights that it stands for in float32."""

    form: Format
    recipe: Recipe
    file: dict[str, Tensor]
    metadata: dict[str, str] | None
    meant: dict[str, Tensor]
    same: Animal

    def load(self) -> Animal:
        return loaded(self.recipe, self.file, self.metadata, self.form.options)


def cases() -> list:
    """Every format in the one model; in the other those that differ in more than what a GPU multiplies in."""
    found = []
    for form, recipe in ((f, r) for f in FORMATS for r in KINDS):
        slow = recipe is not KINDS[0] and form.name in ALIKE
        marks = [pytest.mark.all_models] if slow else []
        found.append(pytest.param((form, recipe), id=f"{form.name} / {recipe.name}", marks=marks))
    return found


@pytest.fixture(scope="module", params=cases())
def case(request, comfyui) -> Case:
    form, recipe = request.param
    present(form)
    if not (whole := build(recipe)).loaded:
        pytest.skip(f"this ComfyUI loads {recipe.name} in its published size only")
    file, metadata, meant = stored(form, {n: t.clone() for n, t in whole.model.base.diffusion_model.state_dict().items()})
    return Case(form, recipe, file, metadata, meant, loaded(recipe, meant))


@pytest.fixture
def as_on_a_gpu(comfyui, monkeypatch):
    """The host takes its CPU for one with products in all its formats."""
    import comfy.model_management

    for name in ("supports_fp8_compute", "supports_nvfp4_compute", "supports_mxfp8_compute"):
        if hasattr(comfy.model_management, name):
            monkeypatch.setattr(comfy.model_management, name, lambda _device=None: True)


def picture(animal: Animal) -> Tensor:
    """What the stock sampler draws now, on a real GPU in bf16: it has no fp8 products that give float32."""
    if not KERNELS_DIFFER:
        return drawn(animal)
    if any(layout_of(m.weight) == "TensorCoreFP8E5M2Layout" for m in quantised(animal).values()):
        pytest.skip("no NVIDIA GPU multiplies e5m2 with e5m2, so that the host draws nothing with such a file there")
    return drawn(dataclasses.replace(animal, model=animal.model.for_training(torch.bfloat16)))


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
    """Of every parameter, so through all the layers behind it; with recomputed blocks too; in bf16 as near as bf16 comes."""
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
    record_property("model", case.recipe.name)
    record_property("near", NEAR)
    record_property("distance", distance)
    record_property("layers", len(layers))
    record_property("in_bf16", found)


def test_the_gradient_is_no_other_on_a_gpu(case, as_on_a_gpu, record_property):
    """Where the host multiplies in the format itself; and how far such products are from the weights that they are made of."""
    animal = case.load()
    multiplies = [m for m in quantised(animal).values() if getattr(m, "_full_precision_mm", False) is False]
    assert multiplies or not case.form.algorithm
    same = as_rounded(case, animal)
    right = gradients(same, new_adapter(same), [0])
    assert worst(right, gradients(animal, new_adapter(animal), [0])) < NEAR
    with torch.no_grad(), animal.model.hold(), new_adapter(animal).attached(animal.model.layers()):
        without = one_loss(animal, [0]).item()
    with animal.model.hold(), new_adapter(animal).attached(animal.model.layers()):
        assert one_loss(animal, [0]).item() == without, "a pass without gradients is compared with those that have them"
    if case.form.algorithm not in ("nvfp4", "mxfp8"):
        found, meant = picture(animal), picture(same)
        record_property("products", ((found - meant).norm() / meant.norm()).item())


def as_rounded(case: Case, animal: Animal) -> Animal:
    """In float32, with what an older host has rounded to fp8 on its own because most of the file is fp8."""
    network, layers = animal.model.base.diffusion_model, quantised(animal)
    everything = chain(network.named_parameters(), network.named_buffers())
    ordinary = {name: tensor for name, tensor in everything if name.removesuffix(".weight") not in layers}
    return loaded(case.recipe, {n: ordinary[n].float() if n in ordinary else t for n, t in case.meant.items()})


def test_a_lora_is_one_product_with_its_layer(case, monkeypatch):
    animal = in_float32(case.load())
    monkeypatch.setattr(LoRALayer, "add_to", lambda *_: pytest.fail("a LoRA by itself"))
    gradients(animal, new_adapter(animal), [0])


@pytest.mark.parametrize("kind", [{"weight_decompose": True}, {"algorithm": "LoKr"}, {"algorithm": "LoHa"}], ids=str)
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


def test_blocks_away(case):
    """Copies of packed weights come for their own passes, and none of them stays."""
    animal = in_float32(case.load())
    right = gradients(case.same, new_adapter(case.same), [0])
    assert worst(right, gradients(animal, new_adapter(animal), [0], again=True, away=1.0)) < NEAR
    assert not any("forward" in block.__dict__ for block in animal.model.blocks())


def test_it_learns_and_leaves_everything_as_it_was(case):
    animal = case.load()
    weights = dict(animal.model.base.named_parameters())
    assert all(p.is_inference() for p in weights.values()), "as a graph makes them"
    numbers = {name: [part.clone() for part in parts_of(p)] for name, p in weights.items()}
    before, identity = picture(animal), animal.model.identity()
    assert learns(in_float32(animal))
    assert torch.equal(picture(animal), before) and animal.model.identity() == identity
    for name, parameter in animal.model.base.named_parameters():
        now, then = map(raw, parts_of(parameter)), map(raw, numbers[name])
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(now, then, strict=True)), name
    assert not [m for m in animal.model.base.modules() if "forward" in m.__dict__ or "expert_linear" in m.__dict__]


def parts_of(tensor: Any) -> list[Tensor]:
    """A packed tensor's numbers and scales, or an ordinary tensor."""
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]] if layout_of(tensor) else [tensor.detach()]


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.element_size() == 1 else tensor


def test_the_file_beside_quantised_weights(case, record_property, caplog):
    """The stock loader packs the weights anew with the LoRA in them and rounds at random; but for that it draws the same."""
    animal = case.load()
    adapter = new_adapter(animal, up=0.5)
    before = picture(animal)
    with adapter.attached(animal.model.layers()):
        live = picture(animal)
    tensors = lora_file.to_file(adapter, animal.model.lora_names(), animal.model.family, torch.float32)
    identity = animal.model.identity()
    with caplog.at_level("WARNING"), torch.inference_mode():
        patched, _ = animal.model.with_lora(None, tensors, 1.0)
    assert "not loaded" not in caplog.text.lower()
    stock = picture(dataclasses.replace(animal, model=type(animal.model)(patched)))
    assert animal.model.identity() == identity, "its patches are in the shared weights now, and count no more than others do"
    assert torch.equal(picture(animal), before)
    wanted, found = (live - before).flatten(), (stock - before).flatten()
    assert wanted.norm() > 0.2 * before.norm()
    assert (found @ wanted / wanted.square().sum()).item() == pytest.approx(1, abs=0.1)
    apart = ((found - wanted).norm() / wanted.norm()).item()
    record_property("redrawn", apart)
    assert apart < ROUNDED[case.form.algorithm or str(case.form.options.get("dtype"))]


def test_no_second_copy_of_the_weights_is_kept(case):
    """Besides the weights autograd keeps no more than beside ordinary ones in float32, of which it keeps none."""

    def kept(animal: Animal) -> int:
        adapter = new_adapter(animal)
        with animal.model.hold(), adapter.attached(animal.model.layers()):
            parameters = [*animal.model.weights(), *adapter.parameters()]
            return memory.measure([], parameters, lambda: one_loss(animal, [0])).needed(Thrift(0, 0), TrainingConfig("any"), 1)

    animal = in_float32(case.load())
    # What converts a norm's numbers, which are few, keeps those.
    assert kept(animal) - kept(case.same) <= 0.01 * sum(p.nbytes for p in case.same.model.weights())


def test_it_is_told_from_others_and_known_again(case):
    animal, again = case.load(), case.load()
    assert animal.model.identity() == again.model.identity() != case.same.model.identity()
    for change in changes(case):
        file = {name: change(name, tensor) for name, tensor in case.file.items()}
        other = loaded(case.recipe, file, case.metadata, case.form.options)
        assert other.model.identity() != animal.model.identity()


def changes(case: Case) -> list[Callable[[str, Tensor], Tensor]]:
    """Other files of the same shapes: one number type, and scales alone."""

    def turned(name: str, tensor: Tensor) -> Tensor:
        return tensor.flip(0) if name.endswith(".weight") and tensor.ndim == 2 else tensor

    def scaled(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith((".weight_scale", ".scale_weight")):
            return tensor
        return (tensor.view(torch.uint8) + 1).view(tensor.dtype) if tensor.element_size() == 1 else tensor * 2

    return [turned, scaled] if case.form.algorithm or case.form.scaled is not None else [turned]


@pytest.fixture
def nvfp4(comfyui) -> Case:
    """One that is at hand."""
    form, recipe = next(f for f in FORMATS if f.name == "nvfp4"), KINDS[0]
    present(form)
    whole = build(recipe)
    file, metadata, meant = stored(form, {n: t.clone() for n, t in whole.model.base.diffusion_model.state_dict().items()})
    return Case(form, recipe, file, metadata, meant, whole)


@pytest.mark.parametrize("_which", ["nvfp4 with `pre_quant_scale`"])
def test_inputs_that_are_rescaled_are_refused(nvfp4, _which, record_property):
    """ModelOpt's smoothing: a LoRA in such a file multiplies what was rescaled, one beside the layer what was not."""
    name = next(name for name, tensor in nvfp4.file.items() if name.endswith(".comfy_quant")).removesuffix("comfy_quant")
    width = 2 * nvfp4.file[name + "weight"].shape[1]
    nvfp4.file[name + "pre_quant_scale"] = torch.ones(width)
    with pytest.raises(
        AtelierError, match=r"^model: its quantised layers rescale .* \(pre_quant_scale\).* Load it in bf16.*\.$"
    ) as said:
        nvfp4.load().model.check()
    record_property("refused", str(said.value))


SVDQUANT, AWQ = "TensorCoreSVDQuantW4A4Layout", "TensorCoreAWQW4A16Layout"


@pytest.mark.parametrize("layout", [SVDQUANT, AWQ], ids=["SVDQuant", "AWQ"])
def test_packings_that_were_not_tried_are_refused(nvfp4, layout, record_property):
    """SVDQuant and AWQ, which this host's loader does not know: none of their weights can be packed with a LoRA in it."""
    kitchen = pytest.importorskip("comfy_kitchen.tensor")
    kind = getattr(kitchen, layout)
    animal = nvfp4.load()
    layer = next(iter(quantised(animal).values()))
    more = {"proj_down": torch.zeros(2), "proj_up": torch.zeros(2), "smooth_factor": torch.ones(2)} if layout == SVDQUANT else {
        "zeros": torch.zeros(2)
    }  # fmt: skip
    parts = kind.Params(scale=torch.ones(2), orig_dtype=torch.float32, orig_shape=tuple(layer.weight.shape), **more)
    layer.weight = nn.Parameter(kitchen.QuantizedTensor(torch.zeros(2, 2, dtype=torch.int8), layout, parts), requires_grad=False)
    with pytest.raises(
        AtelierError, match=rf"^model: its weights are packed in a format \({layout}\) .* Load it in bf16.*\.$"
    ) as said:
        animal.model.check()
    record_property("refused", str(said.value))
    with pytest.raises(NotImplementedError):
        kind.quantize(torch.zeros(2, 2))


def test_the_host_refuses_files_of_svdquant_itself(nvfp4):
    mark = torch.tensor(list(b'{"format": "svdquant_w4a4"}'), dtype=torch.uint8)
    nvfp4.file.update({name: mark for name in nvfp4.file if name.endswith(".comfy_quant")})
    with pytest.raises(KeyError, match="svdquant_w4a4"):
        nvfp4.load()


def test_all_of_the_hosts_formats_are_here(comfyui):
    from comfy import quant_ops

    assert set(quant_ops.QUANT_ALGOS) <= {form.algorithm for form in FORMATS}
    assert {kind["comfy_tensor_layout"] for kind in quant_ops.QUANT_ALGOS.values()} <= set(LAYOUTS)


@pytest.mark.all_models
@pytest.mark.parametrize("form", ["fp8 e4m3 scaled", "int8 ConvRot"], ids=lambda name: f"{name} / SDXL")
def test_a_network_of_published_depth(comfyui, form, record_property):
    """Through 285 quantised layers, where roundings add up; in four bits the host's own detection does not know such a file."""
    recipe = next(recipe for recipe in RECIPES if recipe.name == "SDXL, from a file")
    form = present(next(one for one in FORMATS if one.name == form))
    file, metadata, meant = stored(form, {n: t.clone() for n, t in build(recipe).model.base.diffusion_model.state_dict().items()})
    animal, same = loaded(recipe, file, metadata), loaded(recipe, meant)
    right = gradients(same, new_adapter(same), [0])
    distance = worst(right, gradients(animal, new_adapter(animal), [0]))
    assert distance < 1e-4
    for name, value in (("format", form.name), ("model", "SDXL"), ("near", 1e-4), ("distance", distance)):
        record_property(name, value)


def test_a_text_encoder_of_quantised_layers_learns(comfyui):
    from comfy import ops, quant_ops

    if "int8_tensorwise" not in quant_ops.QUANT_ALGOS:
        pytest.skip("this ComfyUI has no int8_tensorwise")
    model = build(next(recipe for recipe in RECIPES if recipe.name == "SD 1.5")).model
    reader = next(reader for reader in texts.READERS if reader.name == "CLIP-L (SD 1.5)")
    text, same = (host.TextEncoder(texts.build(reader)) for _ in range(2))
    with torch.inference_mode():
        for name, layer in list(text.layers().items()):
            whole = quant_ops.QuantizedTensor.from_float(layer.weight.float(), "TensorWiseINT8Layout", per_channel=True)
            other = ops.mixed_precision_ops({}, torch.float32).Linear(layer.in_features, layer.out_features)
            other.weight, other.bias = nn.Parameter(whole, requires_grad=False), layer.bias
            other.quant_format, other.layout_type = "int8_tensorwise", "TensorWiseINT8Layout"
            parent, _, own = name.rpartition(".")
            setattr(text.clip.cond_stage_model.get_submodule(parent), own, other)
            same.layers()[name].weight = nn.Parameter(whole.dequantize(), requires_grad=False)
    text.check()
    adapters = {one: test_texts.new_adapter(one) for one in (text, same)}
    found, right = (
        {name: g for name, g in test_texts.gradients(model, one, adapters[one]).items() if g.any()} for one in (text, same)
    )
    assert found.keys() == right.keys() and worst(right, found) < NEAR


def test_what_the_host_does_to_a_packed_weight_on_the_way_counts(comfyui):
    """A LoRA that it lays on in every pass is in the gradient as well, and once only."""
    from comfy import ops, quant_ops

    if not hasattr(quant_ops, "TensorWiseINT8Layout"):
        pytest.skip("this ComfyUI has no int8_tensorwise")
    layer, stream = ops.mixed_precision_ops({}, torch.float32).Linear(64, 32), torch.Generator().manual_seed(0)
    packed_weight = quant_ops.QuantizedTensor.from_float(torch.randn(32, 64, generator=stream), "TensorWiseINT8Layout")
    layer.weight = nn.Parameter(packed_weight, requires_grad=False)
    layer.bias = nn.Parameter(torch.randn(32, generator=stream), requires_grad=False)
    layer.weight_function, layer.bias_function = [lambda weight: weight + 0.1], [lambda bias: bias * 2]
    x = torch.randn(3, 5, 64, generator=stream).requires_grad_()
    with unpacking([layer]):
        out = layer(x)
    whole = packed_weight.dequantize() + 0.1
    assert torch.allclose(out, x @ whole.t() + 2 * layer.bias, atol=1e-5)
    (found,) = torch.autograd.grad(out.sum(), x)
    assert torch.allclose(found, whole.sum(0).expand_as(x), atol=1e-5)


def test_a_bank_of_experts_passes_the_gradient_on(comfyui, monkeypatch):
    """Its products on a GPU cut it, so that what lies before the bank would learn from half of the loss without any error."""
    import comfy.ops
    from comfy import quant_ops

    operations = comfy.ops.mixed_precision_ops({}, torch.float32)
    if not hasattr(operations, "MoEExperts"):
        pytest.skip("this ComfyUI has no banks of experts")
    bank = operations.MoEExperts(2, 64, 32)
    whole = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(0))
    each = [quant_ops.QuantizedTensor.from_float(w, "TensorCoreFP8E4M3Layout", scale="recalculate") for w in whole]
    parts = dataclasses.replace(each[0]._params, scale=torch.stack([e._params.scale for e in each]), orig_shape=(2, 32, 64))
    with torch.inference_mode():
        packed_bank = quant_ops.QuantizedTensor(torch.stack([e._qdata for e in each]), "TensorCoreFP8E4M3Layout", parts)
        bank.weight = nn.Parameter(packed_bank, requires_grad=False)
    bank.bias, bank.layout_type = nn.Parameter(torch.zeros(2, 32), requires_grad=False), "TensorCoreFP8E4M3Layout"
    monkeypatch.setattr(quant_ops.TensorCoreFP8E4M3Layout, "supports_fast_matmul", classmethod(lambda _cls: True))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with bank.bank_resident(x):
        assert not bank.expert_linear(x, 1).requires_grad, "the host's own"
    with unpacking([bank]), bank.bank_resident(x):
        (found,) = torch.autograd.grad(bank.expert_linear(x, 1).square().sum(), x)
    meant = each[1].dequantize()
    assert torch.allclose(found, 2 * (x @ meant.t()) @ meant, rtol=1e-4, atol=1e-4)
    assert "expert_linear" not in bank.__dict__
