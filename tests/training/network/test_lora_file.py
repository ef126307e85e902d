"""A saved file means in ComfyUI what the live adapter computes, and what it means there is read back."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.tests import fuzz
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.errors import NotFinite
from lora_atelier.training.network import lora_file
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.lora import shares

from .support import KINDS, close, inputs, layers, names, outputs, trained, with_weight


def in_comfyui(file: dict[str, torch.Tensor], where: dict, strength: float, caplog) -> dict[str, torch.Tensor]:
    """What the layers answer when ComfyUI has patched the file into their weights."""
    import comfy.lora

    to_load = {name: f"{layer}.weight" for layer, known in names().items() for name in known}
    with caplog.at_level(logging.WARNING):
        patches = comfy.lora.load_lora(file, to_load)
    assert caplog.text == ""
    out = {}
    for layer, x in inputs().items():
        weight = where[layer].weight.detach().clone()
        if f"{layer}.weight" in patches:
            patch = (strength, patches[f"{layer}.weight"], 1.0, None, None)
            weight = comfy.lora.calculate_weight([patch], weight, f"{layer}.weight")
        out[layer] = with_weight(where[layer], weight, x)
    assert caplog.text == ""
    return out


@pytest.mark.parametrize("family", ["SDXL", "WAN21_T2V"])
@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_computes_what_the_live_adapter_does(comfyui, caplog, kind, family):
    where = layers()
    adapter = trained(where, KINDS[kind])
    file = lora_file.to_file(adapter, names(), family, torch.float32, where)
    prefix = "lora_unet_" if family == "SDXL" else "diffusion_model."
    assert all(key.startswith(prefix) for key in file)
    plain = outputs(where)
    for strength in (1.0, 0.6, -0.5):
        adapter.strength = strength
        live, stock = outputs(where, adapter), in_comfyui(file, where, strength, caplog)
        for name in where:
            assert close(live[name], stock[name]), (name, strength)
            assert not close(live[name], plain[name], 1e-2), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_back(comfyui, caplog, kind):
    where = layers()
    adapter = trained(where, KINDS[kind])
    file = lora_file.to_file(adapter, names(), "SDXL", torch.float32, where)
    again = Adapter(lora_file.read(file, where, names())[0])
    assert {n: b.algorithm for n, b in again.branches.items()} == {n: b.algorithm for n, b in adapter.branches.items()}
    live, read = outputs(where, adapter), outputs(where, again)
    assert all(close(read[name], live[name]) for name in where)
    # On another base model, too, it means what ComfyUI makes of it there.
    other = layers(seed=8)
    there = outputs(other, Adapter(lora_file.read(file, other, names())[0]))
    stock = in_comfyui(file, other, 1.0, caplog)
    assert all(close(there[name], stock[name]) for name in where)


def spellings(down: torch.Tensor, up: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    n, m = "lora_unet_mid_fc", "diffusion_model.mid.fc"
    return {
        "kohya": {f"{n}.lora_down.weight": down, f"{n}.lora_up.weight": up, f"{n}.alpha": torch.tensor(2.0)},
        "PEFT": {f"{m}.lora_A.weight": down, f"{m}.lora_B.weight": up},
        "PEFT with the adapter's name": {f"{m}.lora_A.default.weight": down, f"{m}.lora_B.default.weight": up},
        "diffusers": {f"{m}.lora.down.weight": down, f"{m}.lora.up.weight": up},
        "old diffusers": {f"{m}_lora.down.weight": down, f"{m}_lora.up.weight": up},
        "without suffix": {f"{m}.lora_A": down, f"{m}.lora_B": up},
        "DoRA": {
            f"{n}.lora_down.weight": down, f"{n}.lora_up.weight": up, f"{n}.alpha": torch.tensor(1.0),
            f"{n}.dora_scale": torch.linspace(0.5, 1.5, 42).view(-1, 1),
        },
    }  # fmt: skip


@pytest.mark.parametrize("spelling", spellings(torch.zeros(1), torch.zeros(1)))
def test_other_tools_spellings_mean_what_comfyui_makes_of_them(comfyui, caplog, spelling):
    where, stream = layers(), torch.Generator().manual_seed(5)
    file = spellings(torch.randn(4, 30, generator=stream), torch.randn(42, 4, generator=stream))[spelling]
    mine = outputs(where, Adapter(lora_file.read(file, where, names())[0]))["mid.fc"]
    assert close(mine, in_comfyui(file, where, 1.0, caplog)["mid.fc"])


def test_tucker_factors_of_lycoris_files_are_read(comfyui, caplog):
    """LoCon with a core, LoHa with cores and LoKr with a core, all on the same 3 x 3 convolution."""
    where, stream, n = layers(), torch.Generator().manual_seed(6), "lora_unet_out_conv"

    def some(*shape):
        return torch.randn(shape, generator=stream) * 0.4

    locon = {"lora_down.weight": some(4, 12, 1, 1), "lora_mid.weight": some(4, 4, 3, 3), "lora_up.weight": some(30, 4, 1, 1)}
    loha = {f"hada_w{i}_{side}": some(4, 30 if side == "a" else 12) for i in (1, 2) for side in "ab"}
    loha |= {f"hada_t{i}": some(4, 4, 3, 3) for i in (1, 2)}
    lokr = {"lokr_w1": some(5, 3), "lokr_t2": some(2, 2, 3, 3), "lokr_w2_a": some(2, 6), "lokr_w2_b": some(2, 4)}
    both = {"lokr_w1_a": some(5, 2), "lokr_w1_b": some(2, 3), "lokr_w2_a": some(6, 2), "lokr_w2_b": some(2, 36)}
    for parts in (locon, loha, lokr, both):
        file = {f"{n}.{part}": tensor for part, tensor in parts.items()} | {f"{n}.alpha": torch.tensor(3.0)}
        adapter = Adapter(lora_file.read(file, where, names())[0])
        live = outputs(where, adapter)["out.conv"]
        if (
            parts is lokr
        ):  # ComfyUI reads it, but fails to apply it and leaves the layer as it is: the definition is the reference
            w2 = torch.einsum("ijhw,ip,jr->prhw", lokr["lokr_t2"], lokr["lokr_w2_a"], lokr["lokr_w2_b"])
            delta = torch.kron(lokr["lokr_w1"][:, :, None, None], w2.contiguous()) * 3 / 2
            expected = with_weight(where["out.conv"], where["out.conv"].weight + delta, inputs()["out.conv"])
        else:
            expected = in_comfyui(file, where, 1.0, caplog)["out.conv"]
        assert close(live, expected)
        written = lora_file.to_file(adapter, names(), "SDXL", torch.float32)
        assert close(in_comfyui(written, where, 1.0, caplog)["out.conv"], live)


def test_the_magnitude_of_peft_is_the_papers():
    """PEFT's own checkpoints hold m itself: W' = m (W + BA) / ||W + BA||."""
    where, stream, n = layers(), torch.Generator().manual_seed(5), "diffusion_model.mid.fc"
    down, up = torch.randn(4, 30, generator=stream), torch.randn(42, 4, generator=stream)
    m = torch.rand(42, generator=stream) + 0.5
    file = {f"{n}.lora_A.weight": down, f"{n}.lora_B.weight": up, f"{n}.lora_magnitude_vector": m}
    summed = where["mid.fc"].weight + up @ down
    expected = with_weight(where["mid.fc"], m[:, None] * summed / summed.norm(dim=1, keepdim=True), inputs()["mid.fc"])
    assert close(outputs(where, Adapter(lora_file.read(file, where, names())[0]))["mid.fc"], expected)


def test_a_magnitude_for_every_input_is_refused():
    n = "lora_unet_mid_fc"
    file = {f"{n}.lora_down.weight": torch.ones(4, 30), f"{n}.lora_up.weight": torch.ones(42, 4)}
    with pytest.raises(ValueError, match="DoRA scale for every input"):
        Adapter(lora_file.read(file | {f"{n}.dora_scale": torch.ones(1, 30)}, layers(), names())[0])


def made_by(file: dict[str, torch.Tensor], stem: str, strength: float) -> torch.Tensor:
    """strength * alpha / rank * B A in float64, as the file's numbers say: the field's formula."""
    parts = {key[len(stem) :]: tensor.double() for key, tensor in file.items() if key.startswith(stem)}
    down = next(parts[name] for name in (".lora_down.weight", ".lora_A.weight") if name in parts)
    up = next(parts[name] for name in (".lora_up.weight", ".lora_B.weight") if name in parts)
    return strength * parts[".alpha"] / len(down) * (up.flatten(1) @ down.flatten(1))


LEARNT = 3e-5
"""Where up-matrices are after a short training."""


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize(("rank", "alpha"), [(128, 1.0), (128, 0.3), (128, 128.0), (16, 1.7), (256, 512.0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", ["SDXL", "WAN21_T2V"])
def test_the_scale_costs_a_file_no_digits(comfyui, caplog, family, dtype, rank, alpha, stabilised):
    """As in a file whose scale is 1: what rounding of the factors alone costs is the measure, not the size of the scale."""
    config = NetworkConfig(rank, alpha, rank_stabilised=stabilised, include="mid.*")
    where = layers()
    adapter = Adapter.fresh({n: layer for n, layer in where.items() if n == "mid.fc"}, config, seed=2)
    branch = adapter.branches["mid.fc"]
    branch.up.data = torch.randn(branch.up.shape, generator=torch.Generator().manual_seed(3)) * LEARNT
    scale = alpha / rank**0.5 if stabilised else alpha / rank
    product = branch.up.double() @ branch.down.double()
    file = lora_file.to_file(adapter, names(), family, dtype)
    stem = next(key for key in file if key.endswith(".alpha")).removesuffix(".alpha")
    peft = family != "SDXL"
    assert file[stem + ".alpha"].float().item() == (rank if peft else torch.tensor(scale * rank).item())

    def off(made: torch.Tensor, wanted: torch.Tensor) -> float:
        return ((made - wanted).norm() / wanted.norm()).item()

    rounded = branch.up.to(dtype).double() @ branch.down.to(dtype).double()
    usual = off(rounded, product)
    found = off(made_by(file, stem, 0.7), 0.7 * scale * product)
    assert found <= 1.2 * usual + 1e-6, "also where the scale is in the factors, since both are made of one size"
    again = Adapter(lora_file.read(file, where, names())[0]).branches["mid.fc"]
    assert off(again.delta_weight().double(), scale * product) <= found + 1e-6
    where["mid.fc"].weight.data.zero_()
    stock = in_comfyui(file, where, 0.7, caplog)["mid.fc"].double()
    wanted = with_weight(where["mid.fc"], 0.7 * scale * product.float(), inputs()["mid.fc"]).double()
    bias = with_weight(where["mid.fc"], torch.zeros_like(product).float(), inputs()["mid.fc"]).double()
    assert off(stock - bias, wanted - bias) <= found + 5e-3


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_lycoris_files_have_the_factors_as_they_were_learnt(kind):
    where = layers()
    adapter = trained(where, KINDS[kind])
    for family in ("SDXL", "WAN21_T2V"):
        file = lora_file.to_file(adapter, names(), family, torch.float32)
        for name, branch in adapter.branches.items():
            stem = lora_file.file_name_of(name, names()[name], family)
            first = branch.names[0] if getattr(branch, branch.names[0]) is not None else branch.names[1]
            prefix = lora_file.PREFIXES[type(branch)]
            assert torch.equal(file[f"{stem}{prefix}{first}"], getattr(branch, first).detach())
            assert file[f"{stem}.alpha"].item() == pytest.approx(branch.scale * branch.rank)


def test_numbers_beyond_half_precision_are_stored_in_full(caplog):
    where = layers()
    adapter = trained(where, KINDS["LoRA"])
    adapter.branches["mid.fc"].up.data[0, 0] = 7e4
    with caplog.at_level(logging.WARNING):
        file = lora_file.to_file(adapter, names(), "SDXL", torch.float16, where)
    assert "1 layers have numbers beyond torch.float16" in caplog.text
    mid = {key: tensor for key, tensor in file.items() if key.startswith("lora_unet_mid_fc.")}
    assert {tensor.dtype for tensor in mid.values()} == {torch.float32} and mid["lora_unet_mid_fc.lora_up.weight"].max() == 7e4
    assert {tensor.dtype for key, tensor in file.items() if key not in mid and not key.endswith("alpha")} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_never_stored(dtype, bad):
    where = layers()
    adapter = trained(where, KINDS["LoRA"])
    adapter.branches["mid.fc"].down.data[0, 0] = bad
    with pytest.raises(NotFinite, match=r"LoRA: lora_unet_mid_fc\.lora_down\.weight holds NaN or infinite numbers"):
        lora_file.to_file(adapter, names(), "SDXL", dtype, where)


@given(st.floats(1e-6, 1e6))
def test_the_shares_of_a_scale(scale):
    of_down, of_up = shares(scale)
    assert of_down * of_up == scale and math.log2(of_up).is_integer()
    assert max(of_down, of_up, 1 / of_down, 1 / of_up) <= 2 * max(scale, 1 / scale) ** 0.5
    back = shares(1 / scale)
    assert back[1] * of_up == 1 and back[0] * of_down == pytest.approx(1)


def test_half_precision_files_keep_alpha_and_magnitudes_exact():
    where = layers()
    adapter = trained(where, KINDS["DoRA"])
    adapter.branches["mid.fc"].rank, adapter.branches["mid.fc"].scale = 301, 1.0  # nine bits: too many for bf16
    file = lora_file.to_file(adapter, names(), "SDXL", torch.bfloat16, where)
    assert file["lora_unet_mid_fc.alpha"].item() == 301
    assert file["lora_unet_mid_fc.dora_scale"].dtype == torch.float32
    assert file["lora_unet_mid_fc.lora_up.weight"].dtype == torch.bfloat16


ODD_SHAPES = [(), (0,), (1,), (2,), (2, 0), (0, 6), (6, 2), (42, 4), (4, 30), (2, 2, 3, 3), (1,) * 9, (2, 6, 1, 1)]


@fuzz.fuzzed(300)
@given(st.data())
def test_tensors_of_any_shape_are_a_layer_or_a_sentence(data):
    """As from a file that somebody else wrote: parts missing, of other shapes and types, or not finite."""
    n = "lora_unet_mid_fc"
    pairs = {"lora_down.weight": (4, 30), "lora_up.weight": (42, 4), "lora_mid.weight": (4, 4, 1, 1), "dora_scale": (42, 1)}
    hada = {"hada_w1_a": (42, 4), "hada_w1_b": (4, 30), "hada_w2_a": (42, 4), "hada_w2_b": (4, 30)}
    lokr = {"lokr_w1": (6, 6), "lokr_w2_a": (7, 2), "lokr_w2_b": (2, 5), "lokr_t2": (2, 2, 3, 3)}
    parts = data.draw(st.sampled_from([pairs, hada, lokr])) | {"alpha": ()}
    tensors = {name: torch.ones(shape) for name, shape in parts.items()}
    for name in data.draw(st.lists(st.sampled_from(list(tensors)), min_size=1, max_size=3, unique=True)):
        how = data.draw(st.sampled_from(["drop", "shape", "type", "value"]))
        if how == "drop":
            del tensors[name]
        elif how == "shape":
            tensors[name] = torch.ones(data.draw(st.sampled_from(ODD_SHAPES)))
        elif how == "type":
            tensors[name] = tensors[name].to(data.draw(st.sampled_from([torch.int64, torch.bool, torch.float8_e4m3fn])))
        else:
            tensors[name] = tensors[name] * data.draw(st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 1e30]))
    try:
        lora_file.read({f"{n}.{name}": tensor for name, tensor in tensors.items()}, layers(), names())
    except ValueError as error:
        assert n in str(error)
