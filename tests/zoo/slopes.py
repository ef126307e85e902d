"""Whether a gradient is one: the loss's slope by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lora_atelier.training.network.adapter import Adapter
from torch import Tensor


def named(adapter: Adapter) -> dict[str, torch.nn.Parameter]:
    return {f"{layer}.{part}": p for layer, branch in adapter.branches.items() for part, p in branch.named_parameters()}


def slope(value: Callable[[], float], adapter: Adapter, direction: Mapping[str, Tensor], step: float) -> float:
    """The derivative of ``value`` along ``direction`` by the five-point rule, whose error is of the order of step^4."""

    def at(distance: float) -> float:
        with torch.no_grad():
            for name, parameter in named(adapter).items():
                parameter += distance * direction[name]
            found = value()
            for name, parameter in named(adapter).items():
                parameter -= distance * direction[name]
        return found

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
