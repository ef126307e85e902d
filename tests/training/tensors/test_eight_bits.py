"""Matrices in eight bits: their numbers against tables and formulas of their own, and products against exact ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.tensors import eight_bits
from lora_atelier.training.tensors.eight_bits import eight_bit_product, has_products, is_faster, meant, rounded
from torch import Tensor

KINDS = ("fp8", "int8")
SIZES = {"fp8": 448.0, "int8": 127.0}


def e4m3() -> np.ndarray:
    """Every number of the format, from its definition: a sign, four bits of exponent with bias 7, three of mantissa."""
    found = []
    for code in range(127):  # the last one is NaN
        exponent, mantissa = code >> 3, code & 7
        found.append(mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.array(sorted({*found, *(-x for x in found)}))


GRIDS = {"fp8": e4m3(), "int8": np.arange(-127.0, 128.0)}


def matrix(rows: int, columns: int, seed: int, spread: float = 1.0) -> Tensor:
    """Rows of very different sizes."""
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=stream) * torch.logspace(-spread, spread, rows)[:, None]


@pytest.mark.parametrize("kind", KINDS)
@given(rows=st.integers(1, 9), columns=st.integers(1, 40), seed=st.integers(0, 99), spread=st.floats(0, 6))
def test_every_number_is_the_nearest_that_the_format_has(kind, rows, columns, seed, spread):
    whole = matrix(rows, columns, seed, spread)
    numbers, scale = rounded(whole, kind)
    assert numbers.dtype == {"fp8": torch.float8_e4m3fn, "int8": torch.int8}[kind] and numbers.shape == whole.shape
    assert scale.shape == (rows, 1) and scale.dtype == torch.float32
    asked, got = whole.double().numpy(), numbers.double().numpy()
    by_hand = np.abs(asked).max(1, keepdims=True) / SIZES[kind]
    assert np.allclose(scale.numpy(), by_hand, rtol=1e-6)
    grid = GRIDS[kind]
    assert np.isin(got, grid).all()
    least = np.abs((asked / by_hand)[..., None] - grid).min(-1)
    assert (np.abs(asked / by_hand - got) <= least + 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_they_mean_is_the_product_in_the_format_asked_for(kind, dtype):
    numbers, scale = rounded(matrix(8, 64, 1), kind)
    found = meant(numbers, scale, dtype)
    assert found.dtype == dtype and found.is_contiguous()
    exact = numbers.double() * scale.double()
    assert ((found.double() - exact).abs() <= 1.01 * torch.finfo(dtype).eps / 2 * exact.abs() + 1e-8).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_one_and_a_broken_row_does_not_pass_for_numbers(kind):
    whole = matrix(4, 16, 1)
    whole[0], whole[1, 3], whole[2, 5] = 0, torch.nan, torch.inf
    found = meant(*rounded(whole, kind), torch.float32)
    assert not found[0].any() and found[3].isfinite().all()
    assert not found[1].isfinite().all() and not found[2].isfinite().all()


def test_int8_is_the_hosts_own_format(comfyui):
    from comfy import quant_ops

    if "int8_tensorwise" not in getattr(quant_ops, "QUANT_ALGOS", {}):
        pytest.skip("this ComfyUI has no int8")
    whole = matrix(32, 64, 2)
    theirs = quant_ops.QuantizedTensor.from_float(whole, "TensorWiseINT8Layout", per_channel=True).state_dict("weight")
    numbers, scale = rounded(whole, "int8")
    assert torch.equal(numbers, theirs["weight"]) and torch.equal(scale, theirs["weight_scale"].view_as(scale))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_both_sides_as_they_are_rounded(kind, dtype):
    x, (numbers, scale) = matrix(24, 64, 3).to(dtype), rounded(matrix(48, 64, 4), kind)
    found = eight_bit_product(x, numbers, scale)
    assert found.dtype == dtype
    own = x.abs().double().amax(1, keepdim=True) / SIZES[kind]
    near = torch.tensor(GRIDS[kind])
    given_ = near[((x.double() / own)[..., None] - near).abs().argmin(-1)]
    exact = (given_ @ numbers.double().t()) * own * scale.double().t()
    # Where a number lies between two of the grid, either is right.
    slack = 1e-5 if dtype == torch.float32 else 4e-3
    assert (found.double() - exact).norm() <= 2 * slack * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_rows", [True, False])
def test_the_gpus_own_products_are_asked_for_the_same(kind, dtype, by_rows, monkeypatch):
    """torch has them on a CPU as well; on Ada the scales are multiplied on afterwards."""
    monkeypatch.setattr(eight_bits, "_scales_rows", lambda _device: by_rows)
    given_, own = rounded(matrix(32, 64, 5), kind)
    numbers, scale = rounded(matrix(48, 64, 6), kind)
    found = eight_bits._in_hardware(given_, own, numbers, scale, dtype)
    same = eight_bits._anywhere(given_, own, numbers, scale, dtype)
    assert found.dtype == same.dtype == dtype
    assert (found.double() - same.double()).norm() <= 4e-3 * same.double().norm()


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "dtype", "there", "faster"),
    [
        (4608, 3072, 3072, torch.bfloat16, True, True),
        (4608, 3072, 12288, torch.float16, True, True),
        (4608, 3072, 3072, torch.float32, True, False),
        (4608, 3072, 3072, torch.bfloat16, False, False),
        (77, 3072, 3072, torch.bfloat16, True, False),
        (4608, 640, 3072, torch.bfloat16, True, False),
        (4608, 3072, 640, torch.bfloat16, True, False),
        (4608, 3080, 3072, torch.bfloat16, True, False),
        (4608, 3072, 3080, torch.bfloat16, True, False),
    ],
)
def test_they_are_taken_for_large_products_in_half_precision_where_there_are_units(
    rows, outputs, inputs, dtype, there, faster, monkeypatch
):
    monkeypatch.setattr(eight_bits, "has_products", lambda _device, _dtype: there)
    with torch.device("meta"):
        x, numbers = torch.empty(rows, inputs, dtype=dtype), torch.empty(outputs, inputs, dtype=torch.int8)
    assert is_faster(x, numbers) is faster


@pytest.mark.parametrize(
    ("capability", "fp8", "int8"), [((7, 0), False, False), ((7, 5), False, True), ((8, 6), False, True), ((8, 9), True, True)]
)
def test_which_cards_have_units(capability, fp8, int8, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
    card = torch.device("cuda", 0)
    assert has_products(card, torch.float8_e4m3fn) is fp8 and has_products(card, torch.int8) is int8
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not has_products(card, torch.int8), "an AMD card calls itself cuda too"
    assert not has_products(torch.device("cpu"), torch.int8)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("fault", ["none", "refuses", "wrong"])
def test_products_that_do_not_work_are_found_before_they_count(kind, fault, monkeypatch, caplog):
    """As on a card that is newer than its torch."""

    def refuses(*_given):
        raise RuntimeError("no kernel image is available for execution on the device")

    def wrong(*given):
        return product(*given) * 2

    product = eight_bits.eight_bit_product
    monkeypatch.setattr(eight_bits, "eight_bit_product", {"none": product, "refuses": refuses, "wrong": wrong}[fault])
    monkeypatch.setattr(eight_bits, "WITHOUT_PRODUCTS", set())
    monkeypatch.setattr(eight_bits, "has_products", lambda _device, dtype: dtype not in eight_bits.WITHOUT_PRODUCTS)
    eight_bits.try_products(torch.device("cpu"), kind)
    assert bool(eight_bits.WITHOUT_PRODUCTS) == (fault != "none") == (f"no products in {kind}" in caplog.text)


def test_a_lack_of_memory_says_nothing_about_products(monkeypatch):
    def full(*_given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(eight_bits, "eight_bit_product", full)
    monkeypatch.setattr(eight_bits, "has_products", lambda *_: True)
    with pytest.raises(torch.OutOfMemoryError):
        eight_bits.try_products(torch.device("cpu"), "int8")
    assert not eight_bits.WITHOUT_PRODUCTS
