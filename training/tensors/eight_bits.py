"""Matrices in eight bits: how they are rounded, the numbers that they stand for, and products that round the other side as well.

Both formats have one scale a row. That of ``int8`` is the host's ``TensorWiseINT8Layout`` with a scale a channel, to the number;
that of ``fp8`` is the ``scale_weight`` of its older files, with a row's in place of the whole matrix's. They are held as plain
tensors, which every host, a compiler and a CUDA graph know.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from ..errors import is_out_of_memory

log = logging.getLogger("lora-atelier")
EightBits = Literal["fp8", "int8"]
DTYPES: dict[EightBits, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
WITHOUT_PRODUCTS = set[torch.dtype]()
"""Formats whose products were tried here and do not work."""
TINY = 1e-30
"""The least scale, that of a row of zeros."""
LEAST_ROWS, LEAST_WIDTH = 512, 2048
"""From so many rows, and numbers in a row on both sides, a GPU's products in eight bits are taken to be worth rounding for. By
arithmetic: below that, reading and writing what is rounded takes longer than the product saves. Not measured on a GPU."""


def rounded(matrix: Tensor, kind: EightBits) -> tuple[Tensor, Tensor]:
    """(numbers, scale) of a (rows, columns) matrix: eight bits each in ``kind``, and float32, (rows, 1).

    A row that holds something not finite has a scale that is not finite either, so that it does not pass for numbers.
    """
    dtype, wide = DTYPES[kind], matrix.float()
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = (wide.abs().amax(1, keepdim=True) / largest).clamp(min=TINY)
    wide = (wide / scale).clamp_(-largest, largest)  # what lies beyond by rounding would be NaN
    return (wide.round_() if dtype == torch.int8 else wide).to(dtype), scale


def meant(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix that they stand for, as ``dtype``."""
    # Not every format has arithmetic of its own, but each fits into bf16.
    factors = numbers if numbers.dtype == torch.int8 else numbers.to(dtype)
    return torch.mul(factors, scale, out=torch.empty(numbers.shape, dtype=dtype, device=numbers.device))


def is_faster(x: Tensor, numbers: Tensor) -> bool:
    """Whether ``eight_bit_product`` of x (rows, in) takes less time there than a product with the matrix that is meant.

    Only where x is in half precision: who asks for float32 wants no rounding of that size.
    """
    outputs, inputs = numbers.shape
    large = x.shape[0] >= LEAST_ROWS and min(outputs, inputs) >= LEAST_WIDTH and outputs % 16 == inputs % 16 == 0
    return large and x.dtype in (torch.bfloat16, torch.float16) and has_products(x.device, numbers.dtype)


def has_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are units for products of ``dtype``: fp8 since Ada and Hopper, int8 since Turing."""
    if device.type != "cuda" or torch.version.cuda is None or dtype in WITHOUT_PRODUCTS:
        return False
    return torch.cuda.get_device_capability(device) >= ((7, 5) if dtype == torch.int8 else (8, 9))


def try_products(device: torch.device, kind: EightBits) -> None:
    """Multiplies once by ``device``'s own products in ``kind``; if they fail or are wrong, none are made from here on.

    A card that is newer than its torch may have the units, and no kernels for them. Not to be asked while something is recorded.
    """
    dtype = DTYPES[kind]
    if not has_products(device, dtype):
        return
    try:
        with torch.no_grad():
            places = torch.arange(LEAST_WIDTH * LEAST_WIDTH, dtype=torch.float32, device=device).view(LEAST_WIDTH, LEAST_WIDTH)
            matrix, rows = torch.sin(places * 1.7), torch.cos(places[:LEAST_ROWS] * 0.9)
            matrix = matrix * torch.linspace(0.5, 2.0, LEAST_WIDTH, device=device)[:, None]  # each row with another scale
            stored, scale = rounded(matrix, kind)
            for number_format in (torch.bfloat16, torch.float16):
                x = rows.to(number_format)
                expected = _anywhere(*rounded(x, kind), stored, scale, torch.float32)
                if not bool((eight_bit_product(x, stored, scale).float() - expected).norm() <= 0.02 * expected.norm()):
                    raise RuntimeError("their numbers are wrong")
    except Exception as error:  # each kernel refuses in its own way
        if is_out_of_memory(error):
            raise
        WITHOUT_PRODUCTS.add(dtype)
        log.warning("base_weights: this device makes no products in %s (%s); weights are converted first", kind, error)


def eight_bit_product(x: Tensor, numbers: Tensor, scale: Tensor) -> Tensor:
    """x W^T, (rows, out), for x (rows, in) rounded row by row to the format of ``numbers``; W is what they stand for.

    On an NVIDIA GPU by its own products; elsewhere from the same rounded numbers, in float32.
    """
    given, own = rounded(x, "int8" if numbers.dtype == torch.int8 else "fp8")
    multiply = _in_hardware if x.device.type == "cuda" else _anywhere
    return multiply(given, own, numbers, scale, x.dtype)


def _in_hardware(given: Tensor, own: Tensor, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    if numbers.dtype == torch.int8:
        sums = torch._int_mm(given, numbers.t())
        return (sums * own).mul_(scale.t()).to(dtype)
    if dtype == torch.bfloat16 and _scales_rows(given.device):
        return torch._scaled_mm(given, numbers.t(), scale_a=own, scale_b=scale.t(), out_dtype=dtype)
    one = torch.ones((), device=given.device)
    product = torch._scaled_mm(given, numbers.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
    return product.mul_(own).mul_(scale.t()).to(dtype)


def _scales_rows(device: torch.device) -> bool:
    """Whether products in fp8 take a scale a row (since Hopper)."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def _anywhere(given: Tensor, own: Tensor, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (given.float() @ numbers.float().t()).mul_(own).mul_(scale.t()).to(dtype)
