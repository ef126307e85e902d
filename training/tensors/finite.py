"""Whether numbers are all there: neither NaN nor infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

MASKS = "mask"
"""In a tensor with this in its name minus infinity is a number as it should be: what is left out of attention."""


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; waits for the tensor's device."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.dtype.itemsize == 1:  # torch asks this of no 8-bit format
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


def first_lost(values: Mapping[str, object]) -> str | None:
    """The name of the first tensor or number that is not finite; None if all are, or are something else."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            if MASKS in name and value.is_floating_point():
                value = torch.where(value == -math.inf, 0, value)
            if not is_finite(value):
                return name
        elif isinstance(value, float) and not math.isfinite(value):
            return name
    return None
