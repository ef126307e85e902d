"""``x += y`` without the in-place part, where a gradient is needed.

Some networks change their tensors in place (``img += ...``). Autograd then refuses the backward pass, and under checkpointing it
does not even notice: what was kept for the gradient has been overwritten, and the gradient is wrong. Others call fused kernels
through which no gradient comes back.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What ``x += y`` and the like call.
FRESH: Mapping[Callable[..., Any], Callable[..., Any]] = {
    Tensor.add_: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.div_: torch.true_divide,
}
KERNELS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Fused kernels that have no backward pass, and what computes the same step by step; filled by who knows them (``host``)."""
# Python 3.10 has an instruction for each; later ones have BINARY_OP, whose in-place variants count from 13.
NAMES = ("INPLACE_ADD", "INPLACE_SUBTRACT", "INPLACE_MULTIPLY", "INPLACE_TRUE_DIVIDE")
INSTRUCTIONS = {dis.opmap[name] for name in NAMES if name in dis.opmap}
BINARY_OP, FIRST_IN_PLACE = dis.opmap.get("BINARY_OP"), 13


class OutOfPlace(TorchFunctionMode):
    """While it lasts, augmented assignments of tensors that carry a gradient make new tensors of the same type, and ``KERNELS``
    are replaced where a gradient has to pass.

    That is sound because Python binds the name anew to what such a statement returns. A call of ``x.add_(y)`` looks the same
    from here but for the instruction that it came from; it stays as it is, since its caller may count on ``x``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._code: dict[CodeType, bytes] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in KERNELS and torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return KERNELS[func](*args, **(kwargs or {}))
        fresh = FRESH.get(func)
        if (
            fresh is not None
            and torch.is_grad_enabled()
            and any(isinstance(a, Tensor) and a.requires_grad for a in args)
            and self._assigns(sys._getframe(1))
        ):
            return fresh(*args, **(kwargs or {})).to(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def _assigns(self, caller: FrameType) -> bool:
        """Whether ``caller`` is just executing an augmented assignment."""
        code = self._code.get(caller.f_code)
        if code is None:
            code = self._code[caller.f_code] = caller.f_code.co_code
        instruction, argument = code[caller.f_lasti], code[caller.f_lasti + 1]
        return instruction in INSTRUCTIONS or (instruction == BINARY_OP and argument >= FIRST_IN_PLACE)
