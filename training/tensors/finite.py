"""Whether numbers are all there: neither NaN nor infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import NotFinite

MASKS = "mask"
"""In a tensor with this in its name minus infinity is a number as it should be: what is left out of attention."""


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; waits for the tensor's device."""
    return bool(_flag(tensor))


def first_lost(values: Mapping[str, object]) -> str | None:
    """The name of the first tensor or number that is not finite; None if all are, or are something else.

    Where all are, a device is waited for once, however many tensors lie on it.
    """
    flags: dict[torch.device, dict[str, Tensor]] = {}
    lost = set()
    for name, value in values.items():
        if isinstance(value, Tensor):
            if MASKS in name and value.is_floating_point():
                value = torch.where(value == -math.inf, 0, value)
            flags.setdefault(value.device, {})[name] = _flag(value)
        elif isinstance(value, float) and not math.isfinite(value):
            lost.add(name)
    for found in flags.values():
        if not torch.stack(list(found.values())).all():
            lost |= {name for name, flag in found.items() if not flag}
    return next((name for name in values if name in lost), None)


def _flag(tensor: Tensor) -> Tensor:
    """The answer as a tensor without dimensions, on the device of ``tensor``."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    if tensor.dtype.itemsize == 1:  # torch asks this of no 8-bit format
        tensor = tensor.float()
    return torch.isfinite(tensor).all()


def check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """NotFinite naming the first of ``tensors`` that is NaN or infinite, so that ``what`` is not written."""
    lost = first_lost(tensors)
    if lost is not None:
        raise NotFinite(
            f"{what}: {lost} holds NaN or infinite numbers, so this was not written; what was saved before is intact. Lower the "
            "learning rate, or set precision to bf16 or fp32, and queue again."
        )
