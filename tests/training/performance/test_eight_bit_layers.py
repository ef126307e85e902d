"""A model held in eight bits: the gradient of the weights that they stand for, half of the memory, and no trace afterwards."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lora_atelier.training import host, job
from lora_atelier.training.config import NetworkConfig, TextConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.estimate import preflight
from lora_atelier.training.network import fused_linear
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.base_layer import weight_of
from lora_atelier.training.network.lora import LoRALayer
from lora_atelier.training.performance import eight_bit_layers, memory
from lora_atelier.training.performance.checkpointing import checkpointed
from lora_atelier.training.performance.eight_bit_layers import chosen, in_eight_bits, remark, spared
from lora_atelier.training.performance.thrift import Thrift
from lora_atelier.training.runs.inputs import Inputs, compare
from lora_atelier.training.tensors import eight_bits
from safetensors import safe_open
from torch import Tensor, nn

from ..conftest import FAMILIES, load_model
from ..host.test_host import assert_stored, latents, levels, new_adapter, one_loss, picture, stored
from ..tensors.test_eight_bits import GRIDS, SIZES
from ..test_job import Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401
from .test_memory import told

KINDS = ("fp8", "int8")


def by_hand(weight: Tensor, kind: str) -> Tensor:
    """What eight bits with a scale a row stand for, float32, from the format's own numbers; a tie goes to the even one."""
    wide = weight.detach().cpu().float().numpy()
    scale, grid = np.abs(wide).max(1, keepdims=True) / np.float32(SIZES[kind]), GRIDS[kind]
    asked = wide / scale
    above = np.searchsorted(grid, asked).clip(1, len(grid) - 1)
    down, up = asked - grid[above - 1], grid[above] - asked
    is_even = (above - len(grid) // 2) % 2 == 0
    nearest = grid[np.where((up < down) | ((up == down) & is_even), above, above - 1)]
    return torch.from_numpy(nearest * scale).float().to(weight.device)


def held(t: SimpleNamespace, kind: str = "as loaded", dtype: torch.dtype | None = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(t), "model": t.model.for_training(dtype, kind)})


def replaced(name: str, kind: str) -> SimpleNamespace:
    """A model of its own whose weights are those that ``kind`` stands for."""
    t = load_model(name)
    with torch.inference_mode():
        for layer in chosen(t.model.blocks()):
            layer.weight = nn.Parameter(by_hand(layer.weight, kind), requires_grad=False)
    return t


def gradients(t: SimpleNamespace, adapter: Adapter, again: bool = False, offload: float = 0.0) -> list[Tensor]:
    adapter.zero_grad()
    blocks = t.model.blocks() if again else []
    with t.model.hold(offload=offload), adapter.attached(t.model.layers()), checkpointed(blocks):
        return list(torch.autograd.grad(one_loss(t, latents(t, 2), levels(t, 2), [1, 2]), list(adapter.parameters())))


def worst(one: list[Tensor], other: list[Tensor]) -> float:
    return max(((a - b).norm() / a.norm().clamp_min(1e-12)).item() for a, b in zip(one, other, strict=True))


def test_which_layers_are_held_so(tiny):
    names = {id(m): n for n, m in tiny("sd3").model.base.diffusion_model.named_modules()}
    found = {names[id(layer)] for layer in chosen(tiny("sd3").model.blocks())}
    inner = {"x_block.attn.qkv", "x_block.attn.proj", "x_block.mlp.fc1", "x_block.mlp.fc2", "x_block.adaLN_modulation.1",
             "context_block.attn.qkv", "context_block.adaLN_modulation.1"}  # fmt: skip
    more = {"context_block.attn.proj", "context_block.mlp.fc1", "context_block.mlp.fc2"}
    # The last block gives no text on.
    assert found == {f"joint_blocks.{i}.{name}" for i in (0, 1) for name in (inner | more if i == 0 else inner)}
    names = {id(m): n for n, m in tiny("sdxl_unet").model.base.diffusion_model.named_modules()}
    found = {names[id(layer)] for layer in chosen(tiny("sdxl_unet").model.blocks())}
    assert found and all(".transformer_blocks." in n or n.endswith((".proj_in", ".proj_out")) for n in found)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_weights_that_are_meant(tiny, name, kind):
    t, same = tiny(name), replaced(name, kind)
    adapter = new_adapter(t)
    right = gradients(held(same), adapter)
    assert all(g.any() for g in right)
    one = held(t, kind)
    assert worst(right, gradients(one, adapter)) < 2e-4
    assert worst(right, gradients(one, adapter, again=True)) < 2e-4
    assert worst(right, gradients(one, adapter, again=True, offload=1.0)) < 2e-4
    assert worst(right, gradients(held(t), adapter)) > 2e-3, "or the weights as loaded would do as well"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_lora_is_added_to_a_copy_of_what_they_answer(tiny, name, kind, monkeypatch):
    """As beside a layer in bf16: one product, which those share that read one tensor."""
    t = held(tiny(name), kind)
    adapter = new_adapter(t)
    alone = gradients(t, adapter)
    adapter.flatten(torch.float32)
    monkeypatch.setattr(LoRALayer, "add_to", lambda *_: pytest.fail("a LoRA by itself"))
    asked: list[int] = []
    usual = fused_linear.shared_linear
    monkeypatch.setattr(fused_linear, "shared_linear", lambda layers, *rest: asked.append(len(layers)) or usual(layers, *rest))
    with t.model.hold(), adapter.listening(), adapter.attached(t.model.layers()):
        one_loss(t, latents(t, 2), levels(t, 2), [1, 2])
    assert adapter.flat is not None
    adapter.flat.zero()
    with t.model.hold(), adapter.attached(t.model.layers()):
        adapter.flat.begin()
        one_loss(t, latents(t, 2), levels(t, 2), [1, 2]).backward()
        adapter.flat.collect()
    assert (max(asked, default=0) > 1) == (name != "sd3"), "SD 3 has one layer for all three"
    found = adapter.flat.named(adapter.flat.gradient)
    of = dict(zip(adapter.state(), alone, strict=True))
    assert worst([of[key] for key in found], list(found.values())) < 2e-4


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_so_many_bytes(tiny, name, kind):
    """Counted of what is there: eight bits a number and four bytes a row, whatever it was stored in."""
    t = held(tiny(name), kind)
    layers = chosen(t.model.blocks())
    before = memory.bytes_of(t.model.weights())
    said = preflight.weights_of(t.model, None)
    count = len(t.model.blocks())
    plain, bits = (
        Thrift.asked(TrainingConfig("a", base_weights=name), count, count, t.model.device) for name in ("as loaded", kind)
    )
    wide = sum(layer.weight.nbytes for layer in layers)
    narrow = sum(layer.out_features * (layer.in_features + 4) for layer in layers)
    assert narrow < 0.54 * wide
    with t.model.hold():
        assert memory.bytes_of(t.model.weights()) == before - wide + narrow
        assert preflight.weights_of(t.model, None).needed(bits) == before - wide + narrow
        assert chosen(t.model.blocks()) == [] and not any(map(spared, t.model.blocks()))
    assert said.needed(bits) == before - wide + narrow, "told before it is held"
    assert said.needed(plain) == before
    every = tuple(range(count))
    assert said.needed(bits.keeping_away(every)) <= said.needed(plain.keeping_away(every))


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_no_weights_of_its_own(tiny, kind):
    t = tiny("sd3")
    adapter = new_adapter(t)

    def kept(one: SimpleNamespace) -> int:
        with one.model.hold(), adapter.attached(one.model.layers()):
            parameters = [*one.model.weights(), *adapter.parameters()]
            found = memory.measure([], parameters, lambda: one_loss(one, latents(t, 1), levels(t, 1), [1]))
        return found.needed(Thrift(0, 0), TrainingConfig("any"), 1)

    assert kept(held(t, kind)) <= 1.02 * kept(held(t))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_are_away_travel_in_eight_bits(tiny, kind):
    """What waits at home for its pass is what is copied."""
    t = held(tiny("sd3"), kind)
    sizes = [memory.bytes_of([*b.parameters(), *b.buffers()]) - spared(b) for b in t.model.blocks()]
    with t.model.hold(offload=1.0):
        assert [memory.bytes_of([*b.parameters(), *b.buffers()]) for b in t.model.blocks()] == sizes
    assert all(spared(b) for b in t.model.blocks())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_what_it_was_and_draws_what_it_drew(tiny, name, kind):
    t = tiny(name)
    before, weights = picture(t), stored(t)
    inference = [p.is_inference() for p in t.model.base.parameters()]
    gradients(held(t, kind), new_adapter(t))
    assert_stored(t, weights)
    assert [p.is_inference() for p in t.model.base.parameters()] == inference
    assert torch.equal(picture(t), before)
    assert not [m for m in t.model.base.modules() if "forward" in m.__dict__ or "scale_weight" in m._buffers]


@pytest.mark.parametrize("where", ["while it is rounded", "in a step"])
def test_an_error_leaves_no_trace_either(tiny, where, monkeypatch):
    t = tiny("sd3")
    weights, one = stored(t), held(t, "fp8")
    places = {id(m): m.weight for m in chosen(t.model.blocks())}
    calls = []

    def failing(*given: object) -> tuple[Tensor, Tensor]:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return eight_bits.rounded(*given)

    if where == "while it is rounded":
        monkeypatch.setattr(eight_bit_layers, "rounded", failing)
    with pytest.raises(KeyboardInterrupt), one.model.hold():
        assert where == "in a step" and chosen(t.model.blocks()) == []
        raise KeyboardInterrupt
    assert_stored(t, weights)
    assert {id(m): m.weight for m in chosen(t.model.blocks())}.keys() == places.keys()
    assert all(m.weight is places[id(m)] for m in chosen(t.model.blocks()))


def test_a_text_encoder_that_learns_is_left_alone(tiny):
    t = held(tiny("sd15"), "int8")
    with t.model.hold(t.text):
        assert not [m for m in t.text.clip.cond_stage_model.modules() if "scale_weight" in m._buffers]
        assert {w.dtype for w in t.text.weights()} & {torch.int8, torch.float8_e4m3fn} == set()
        assert [m for m in t.model.base.modules() if "scale_weight" in m._buffers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [{"algorithm": "LoKr"}, {"algorithm": "LoHa"}], ids=str)
def test_other_adapters(tiny, kind, network):
    t, same = tiny("sd3"), replaced("sd3", kind)

    def found(one: SimpleNamespace) -> list[Tensor]:
        layers = {n: m for n, m in one.model.layers().items() if n.endswith(("attn.qkv", "mlp.fc1"))}
        adapter = Adapter.fresh(layers, NetworkConfig(rank=2, alpha=2.0, **network), 3).to(one.model.device)
        stream = torch.Generator().manual_seed(5)
        for parameter in adapter.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=stream).to(parameter.device)
        return gradients(one, adapter)

    assert worst(found(held(same)), found(held(t, kind))) < 2e-4


def test_what_measures_the_weights_is_refused_beside_rounded_ones():
    with pytest.raises(AtelierError, match="base_weights: weight_decompose measures"):
        TrainingConfig("a", network=NetworkConfig(weight_decompose=True), base_weights="int8")


def test_what_the_host_lays_on_a_weight_counts_once(tiny):
    """It is in the numbers that are rounded, so nobody who reads these may lay it on them again."""
    t = tiny("sd3")
    block = t.model.blocks()[0]
    (layer, *_) = chosen([block])
    layer.weight_function = [lambda weight: weight + 1.0]
    try:
        plain = weight_of(layer, t.model.device).float()
        with in_eight_bits([block], "int8", t.model.device):
            assert (weight_of(layer, t.model.device) - plain).abs().max() < 0.05
        assert len(layer.weight_function) == 1
    finally:
        layer.weight_function = []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left_home", [False, True])
def test_a_lora_of_the_graph_is_in_what_is_rounded(tiny, kind, left_home):
    """Merged by the host, or laid on in every call where it has left the weights in main memory."""
    t = tiny("sd3")
    key = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    weight = t.model.patcher.model_state_dict()[key]
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    wanted = by_hand(weight.float().cpu() + 0.5 * change, kind)
    patcher = t.model.patcher.clone()
    patcher.add_patches({key: (change,)}, 0.5)
    changed = type(t.model)(patcher)
    layer = patcher.get_model_object(key.removesuffix(".weight"))
    if not left_home:
        with changed.for_training(torch.float32, kind).hold():
            found = eight_bits.meant(layer.weight, layer.scale_weight, torch.float32)
    else:
        with torch.inference_mode():
            t.model.patcher.detach()
            patcher.patch_model(t.model.device, lowvram_model_memory=1)
        assert layer.weight_function, "or this is not what it says"
        with torch.inference_mode(False), in_eight_bits(t.model.blocks(), kind, t.model.device):
            found = eight_bits.meant(layer.weight, layer.scale_weight, torch.float32)
            x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(2)).to(t.model.device)
            assert torch.allclose(layer(x), F.linear(x, found, layer.bias.to(x)), atol=1e-4), "it is not laid on twice"
    with torch.inference_mode():
        patcher.detach()
    assert (found.cpu() - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_products_in_eight_bits_go_there_and_the_gradient_comes_back_in_full(kind, monkeypatch, comfyui):
    """The input is rounded row by row for the product; the way back is that of the weights that are meant."""
    import comfy.ops

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = comfy.ops.disable_weight_init.Linear(64, 96)

    block, stream = Block(), torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape, generator=stream)
        parameter.requires_grad_(False)
    x = torch.randn(2, 5, 64, generator=stream).requires_grad_()
    pull = torch.randn(2, 5, 96, generator=stream)
    weight, bias = by_hand(block.linear.weight, kind), block.linear.bias
    monkeypatch.setattr(eight_bits, "is_faster", lambda _x, _numbers: True)
    with in_eight_bits([block], kind, torch.device("cpu")):
        found = block.linear(x)
    (gradient,) = torch.autograd.grad(found, x, pull)
    rows = by_hand(x.flatten(0, 1), kind).view(x.shape)
    assert torch.allclose(found, F.linear(rows, weight, bias), atol=1e-4)
    assert not torch.allclose(found, F.linear(x, weight, bias), atol=1e-2)
    assert torch.allclose(gradient, pull @ weight, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiler_sees_one_graph(kind):
    block = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).requires_grad_(False)
    x = torch.randn(3, 64, requires_grad=True)
    with in_eight_bits([block], kind, torch.device("cpu")):
        usual = block(x)
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        found = compiled(x)
        wanted, got = (torch.autograd.grad(y.square().sum(), x)[0] for y in (usual, found))
    torch._dynamo.reset()
    assert torch.allclose(found, usual, atol=1e-5) and torch.allclose(got, wanted, atol=1e-4)


def test_what_is_said_of_it(tiny):
    blocks = tiny("sd3").model.blocks()
    assert remark(blocks, "fp8").startswith("base_weights: while it trains, 17 layers of the model are held in fp8, in 0.00")
    assert "no layers that could be held" in remark([nn.Sequential(nn.Linear(8, 8))], "int8")
    narrow = nn.Sequential(nn.Linear(64, 64, bias=False)).to(torch.float8_e4m3fn)
    assert "stored in 8 bits or fewer already" in remark([narrow], "fp8")


def test_layers_that_somebody_has_changed_are_left_to_them():
    block = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    assert len(chosen([block])) == 2
    block[0].forward = lambda x: x
    assert chosen([block]) == [block[1]]


def test_contradictions_and_what_decides_a_run(tiny, dataset):  # noqa: F811
    with pytest.raises(AtelierError, match=r"^base weights: .*fp4"):
        TrainingConfig("a", base_weights="fp4")
    plain, rounded_ = (Inputs.of(TrainingConfig("a", base_weights=k), dataset, {}) for k in ("as loaded", "fp8"))
    assert str(compare(plain, rounded_)) == "base_weights is fp8 now and was as loaded"
    before = json.loads(plain.stored())
    del before["settings"]["base_weights"]
    assert not compare(Inputs.read(before), plain), "a run of before was trained on the weights as loaded"


# Whole runs


def with_previews() -> job.Preview:
    return job.Preview("a picture", "", 2, 1.0, "euler", "normal", 0, 64, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_eight_bits(tiny, dataset, kind):  # noqa: F811
    t = tiny("sd3")
    before, weights = picture(t), stored(t)
    said = told(t, dataset, recipe("first", base_weights=kind))
    assert [line for line in said if line.startswith(f"base_weights: while it trains, 17 layers of the model are held in {kind}")]
    found = go(t, dataset, recipe("second", base_weights=kind))
    assert_stored(t, weights)
    assert torch.equal(picture(t), before)
    plain = go(t, dataset, recipe("plain"))
    assert np.allclose(found.losses, plain.losses, rtol=0.05), "it learns as beside the weights as loaded"
    again = go(t, dataset, recipe("again", base_weights=kind, gradient_checkpointing=True))
    assert all(torch.allclose(found.tensors[k], again.tensors[k], atol=1e-5) for k in found.tensors)
    assert any(not torch.equal(found.tensors[k], plain.tensors[k]) for k in found.tensors)
    with safe_open(found.epochs.files[-1].path, "pt") as file:
        metadata = file.metadata()
    assert metadata["lora_atelier.base_weights"] == kind and json.loads(metadata["lora_atelier.config"])["base_weights"] == kind
    assert metadata.get("ss_fp8_base") == ("True" if kind == "fp8" else None)
    with safe_open(plain.epochs.files[-1].path, "pt") as file:
        assert "lora_atelier.base_weights" not in file.metadata() and "ss_fp8_base" not in file.metadata()


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_on_the_way_are_drawn_with_the_persons_own_weights(tiny, dataset, kind, monkeypatch):  # noqa: F811
    t = tiny("sd3")
    weights, drawn = stored(t), []
    real = host.Model.sample

    def looked_at(model: host.Model, *given: object, **named: object) -> Tensor:
        assert_stored(t, weights)
        drawn.append(real(model, *given, **named))
        return drawn[-1]

    monkeypatch.setattr(host.Model, "sample", looked_at)
    go(t, dataset, recipe("drawn", base_weights=kind), with_previews())
    assert len(drawn) == 4, "before the first step, and after each epoch"


def test_a_cancelled_run_goes_on_to_the_very_same_lora(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    t, network = tiny("sd3"), NetworkConfig(rank=2, alpha=1.0)
    weights = stored(t)
    whole = go(t, dataset, recipe("whole", base_weights="fp8", network=network), with_previews())
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 5, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, dataset, recipe("pieces", base_weights="fp8", network=network))
    assert_stored(t, weights)
    pieces = go(t, dataset, recipe("pieces", base_weights="fp8", network=network))
    assert all(torch.equal(whole.tensors[k], pieces.tensors[k]) for k in whole.tensors) and pieces.losses == whole.losses


def test_a_text_encoder_learns_beside_it(tiny, dataset):  # noqa: F811
    t = tiny("sd15")
    weights = stored(t)
    config = recipe("both", base_weights="int8", text=TextConfig(encoders="clip"))
    found = go(t, dataset, dataclasses.replace(config, length=dataclasses.replace(config.length, epochs=1)))
    assert any("te" in name for name in found.tensors)
    assert_stored(t, weights)


def test_memory_that_gives_out_brings_the_weights_home(tiny, dataset, monkeypatch):  # noqa: F811
    t = tiny("sd3")
    weights = stored(t)
    monkeypatch.setattr("lora_atelier.training.loop.loss_of", _no_memory)
    with suppress(AtelierError):
        go(t, dataset, recipe("none", base_weights="fp8"))
    assert_stored(t, weights)


def _no_memory(*_given: object) -> Tensor:
    raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_keeps_an_empty_place_for_a_scale(tiny, kind):
    """``fp8_ops`` of some hosts sets ``scale_weight`` to None on every layer, where it is found before any buffer."""
    t = tiny("sd3")
    adapter, layers = new_adapter(t), chosen(t.model.blocks())
    right = gradients(held(t, kind), adapter)
    try:
        for layer in layers:
            layer.__dict__["scale_weight"] = None
        assert worst(right, gradients(held(t, kind), adapter)) == 0
        assert all(layer.__dict__["scale_weight"] is None for layer in layers)
    finally:
        for layer in layers:
            del layer.__dict__["scale_weight"]
