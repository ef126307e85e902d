"""Limit on the norms of many LoRAs at once, where their matrices lie side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from torch import Tensor

from .adapter_layer import AdapterLayer
from .flat import FlatParameters, Slot
from .lora import LoRALayer


def limit_alike(flat: FlatParameters, branches: Mapping[str, AdapterLayer], limit: float) -> set[str]:
    """Shrinks D to a Frobenius norm of ``limit`` where it is above, for all LoRAs among ``branches``; their names.

    ||BA||^2 = sum of (B^T B) * (A A^T), for all layers of one shape in one product. No device sync.
    """
    found = {name: branch for name, branch in branches.items() if isinstance(branch, LoRALayer)}

    def kind(name: str) -> tuple[object, ...]:
        down, up = flat.slots[name, "down"], flat.slots[name, "up"]
        return found[name].rate, found[name].scale, tuple(down.shape), tuple(up.shape)

    for _, same in groupby(sorted(found, key=kind), key=kind):
        names = list(same)
        down, up = (_stack(flat.weights, [flat.slots[name, part] for name in names]) for part in ("down", "up"))
        norms = ((up.transpose(1, 2) @ up) * (down @ down.transpose(1, 2))).sum((1, 2)).clamp_min(0).sqrt()
        ratios = (limit / (norms * abs(found[names[0]].scale)).clamp_min(limit)).sqrt().view(-1, 1, 1)
        down.mul_(ratios)
        up.mul_(ratios)
    return set(found)


def _stack(weights: Tensor, slots: Sequence[Slot]) -> Tensor:
    """(matrices, rows, columns), a view: those of one shape lie one after another in equal distances."""
    rows = slots[0].shape[0]
    columns = slots[0].shape.numel() // rows
    apart = slots[1].start - slots[0].start if len(slots) > 1 else 0
    assert all(slot.start == slots[0].start + i * apart for i, slot in enumerate(slots))
    return weights.as_strided((len(slots), rows, columns), (apart, columns, 1), slots[0].start)
