"""Copies between devices that never wait more than they must."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import is_out_of_memory
from ..protocols import EncodedText
from .autograd_context import AutogradContext

AT_ONCE = 64 * 2**20
"""Bytes that ``to_cpu`` takes from a device in one copy; so much more memory is needed there meanwhile."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without waiting for what a GPU still has to do.

    A copy from ordinary memory makes the caller wait until the GPU has finished everything before it; one from pinned memory
    only takes its place in the queue. The pinned memory is not used again before the copy has been made.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.requires_grad:  # pinning has no way back
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def give_back_pinned() -> None:
    """Page-locked main memory that torch has kept for the next to ask, and nobody uses, goes back to the system.

    Locked pages are taken from all other programs; torch by itself keeps them until the process ends.
    """
    library: Any = getattr(torch, "accelerator", None)
    if keeps_pinned() and hasattr(library, "empty_host_cache"):  # newer versions of torch can
        library.empty_host_cache()


def keeps_pinned() -> bool:
    """Whether torch keeps page-locked memory here. Asked of its own GPUs only: of others it asks what they may not have."""
    return (torch.version.cuda or torch.version.hip) is not None and torch.cuda.is_available()


@torch.no_grad()
def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in main memory, none of which share any.

    A copy from a GPU makes the caller wait for it, so tensors of one kind come together.
    """
    lots: dict[tuple[torch.device, torch.dtype], list[list[int]]] = {}
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    for i, tensor in enumerate(tensors):
        kind = tensor.device, tensor.dtype
        sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
        if kind not in lots or sizes[kind] > AT_ONCE:
            lots.setdefault(kind, []).append([])
            sizes[kind] = tensor.nbytes
        lots[kind][-1].append(i)
    found: dict[int, Tensor] = {}
    for lot in (lot for same in lots.values() for lot in same):
        flat = [tensors[i].detach().reshape(-1) for i in lot]
        for i, part in zip(lot, _there(flat), strict=True):
            found[i] = part.view(tensors[i].shape).clone()
    return [found[i] for i in range(len(tensors))]


def _there(flat: Sequence[Tensor]) -> Sequence[Tensor]:
    """``flat`` in main memory, from one copy; from one each where the device has no room for all of them once more."""
    if len(flat) > 1:
        try:
            parts: Sequence[Tensor] = torch.cat(list(flat)).cpu().split([len(one) for one in flat])
            return parts
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    return [one.cpu() for one in flat]


def with_one_way_back(texts: Sequence[EncodedText], device: torch.device) -> list[EncodedText]:
    """``texts`` as they are; where they learn elsewhere than on ``device``, no gradient goes on before all of them have come.

    Those of ``device`` come in a thread of its own. Were each followed at once, chance would decide in which order those of
    several captions, or of several parts of one, are added up, and a run could not be repeated.
    """
    values = [value for text in texts for value in text.values() if isinstance(value, Tensor)]
    elsewhere = {id(value): value for value in values if value.requires_grad and value.device != device}
    if not elsewhere:
        return list(texts)
    passed = dict(zip(elsewhere, _Through.apply(*elsewhere.values()), strict=True))
    return [{name: passed.get(id(value), value) for name, value in text.items()} for text in texts]


class _Through(torch.autograd.Function):
    """Nothing is done to tensors or gradients; its backward pass begins when all gradients are there."""

    @staticmethod
    def forward(ctx: AutogradContext, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tensors

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return gradients
