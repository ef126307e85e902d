"""Autograd context: what torch hands to forward and backward of an autograd function, as types."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.autograd.function import FunctionCtx


class AutogradContext(FunctionCtx):
    """With the parts that torch sets and does not declare; a function adds what it notes on it. Never made, only named."""

    save_for_backward: Callable[..., None]
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
