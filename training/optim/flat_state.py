"""State of an optimizer over flat parameters, as it is saved: that of one over the parameters themselves.

So a saved run depends neither on where the parameters lie nor on which of them lie side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..network.flat import FlatParameters, Slot

State = Mapping[str, Any]


def split(state: State, flat: FlatParameters, trained: Sequence[int]) -> dict[str, Any]:
    """``state`` (torch's ``state_dict``) with an entry for each parameter; ``trained`` are the groups of ``flat`` it is of."""
    out: dict[str, Any] = {**state, "state": {}, "param_groups": []}
    number = 0
    for index, (group, row) in enumerate(zip(trained, state["param_groups"], strict=True)):
        slots, (begin, size) = flat.groups[group][1], flat.bounds[group]
        for i, slot in enumerate(slots):
            if index in state["state"]:
                kept = state["state"][index].items()
                out["state"][number + i] = {name: _part(value, slot, begin, size) for name, value in kept}
        out["param_groups"].append({**row, "params": list(range(number, number + len(slots)))})
        number += len(slots)
    return out


def _part(value: object, slot: Slot, begin: int, size: int) -> object:
    """What of a group's ``value`` belongs to ``slot``; what belongs to no place belongs to all."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    return value[slot.start - begin : slot.end - begin].view(slot.shape) if value.shape == (size,) else value


def joined(state: State, flat: FlatParameters, trained: Sequence[int]) -> dict[str, Any]:
    """The state over ``flat`` that ``split`` gives as ``state``; ValueError where it is of another adapter."""
    out: dict[str, Any] = {**state, "state": {}, "param_groups": []}
    rows = state["param_groups"]
    if len(rows) != len(trained):
        raise ValueError("other groups of parameters")
    for index, (group, row) in enumerate(zip(trained, rows, strict=True)):
        slots, (begin, size) = flat.groups[group][1], flat.bounds[group]
        if len(row["params"]) != len(slots):
            raise ValueError("another number of parameters")
        kept = [(slot, state["state"][n]) for slot, n in zip(slots, row["params"], strict=True) if n in state["state"]]
        names = {name: None for _, values in kept for name in values}
        if kept:
            out["state"][index] = {name: _whole(name, kept, begin, flat.weights[begin : begin + size]) for name in names}
        out["param_groups"].append({**row, "params": [index]})
    return out


def _whole(name: str, kept: Sequence[tuple[Slot, State]], begin: int, weights: Tensor) -> object:
    """A group's value from those of its parameters."""
    values = [(slot, values[name]) for slot, values in kept if name in values]
    of_numbers = [value for slot, value in values if _is_of_each(value, slot)]
    if of_numbers:
        whole = torch.zeros_like(weights, dtype=of_numbers[0].dtype)
        if name == "z":  # of the schedule-free optimizer: a parameter without a state is where it began
            whole.copy_(weights)
        for slot, value in values:
            place = whole[slot.start - begin : slot.end - begin].view(slot.shape)
            if isinstance(value, Tensor) and ((value.ndim and not _is_of_each(value, slot)) or value.dtype != whole.dtype):
                raise ValueError(f"{name} has other sizes")
            place.copy_(value.view(slot.shape) if value.ndim else value) if isinstance(value, Tensor) else place.fill_(value)
        return whole
    # Steps and the like. Parameters that had no gradient in some steps have taken fewer.
    every = [value for _, value in values]
    return max(every, key=float) if name == "step" else every[0]


def _is_of_each(value: object, slot: Slot) -> bool:
    """Whether ``value`` has a number for each of the slot's; some optimizers keep them in one row."""
    return isinstance(value, Tensor) and value.shape in (slot.shape, (slot.shape.numel(),))
