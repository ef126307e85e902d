"""Inference tensors, which autograd refuses, and ordinary ones over the same storage.

A graph runs in inference mode, so the weights that it loads are inference tensors. A move to another device outside of that mode
(``nn.Module.to`` sets ``.data``) makes hybrids of them: they no longer say what they are, yet have no version counter, without
which no view of them can be taken, in inference mode neither. The counter is what tells an ordinary tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_ordinary(tensor: Tensor) -> bool:
    """Whether views can be taken of ``tensor`` and autograd may keep it."""
    if tensor.is_inference():
        return False
    try:
        tensor._version  # noqa: B018
    except RuntimeError:
        return False
    return True


def ordinary(tensor: Tensor) -> Tensor:
    """``tensor`` where it is ordinary, else an ordinary one over the same storage; no numbers are copied.

    What packs its numbers in a class of its own, or in another way than one after another, is returned as it is; so is all that
    a compiler traces, which is of models that are held and have no others.
    """
    if torch.compiler.is_compiling():
        return tensor
    if is_ordinary(tensor) or type(tensor.data) is not Tensor or tensor.layout is not torch.strided or tensor.is_quantized:
        return tensor
    with torch.inference_mode(False):
        view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return view.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
