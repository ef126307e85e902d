"""Out-of-place mode: ``x += y`` without the in-place part, where a gradient is needed.

Some networks change their tensors in place (``img += ...``). Autograd then refuses the backward pass, and under checkpointing it
does not even notice: what was kept for the gradient has been overwritten, and the gradient is wrong. Others call fused kernels
through which no gradient comes back.

torch's own ``allow_mutation_on_saved_tensors`` cannot serve. It is right without checkpointing, but under
``checkpoint(use_reentrant=False)`` it gives the same silently wrong gradient as nothing (relative error 0.12, torch 2.13), and a
pass through 100 small layers takes 244 ms with it, 47 without and 54 with the mode below.

The mode costs a few microseconds for every torch call, so it is only on where it is needed (``Care``). In compiled code there are
no modes; there the same is done to the graph (``without_in_place``).
"""

from __future__ import annotations

import dis
import operator
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What ``x += y`` and the like call.
FRESH: Mapping[Callable[..., object], Callable[..., Tensor]] = {
    Tensor.add_: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.div_: torch.true_divide,
}
# What they are in a traced graph, where a call of ``x.add_(y)`` has another name.
AUGMENTED: Mapping[object, Callable[..., object]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
KERNELS: dict[Callable[..., object], Callable[..., object]] = {}
"""Fused kernels that have no backward pass, and what computes the same step by step; filled by who knows them (``host``)."""
# Python 3.10 has an instruction for each; later ones have BINARY_OP, whose in-place variants count from 13.
NAMES = ("INPLACE_ADD", "INPLACE_SUBTRACT", "INPLACE_MULTIPLY", "INPLACE_TRUE_DIVIDE")
INSTRUCTIONS = {dis.opmap[name] for name in NAMES if name in dis.opmap}
BINARY_OP, FIRST_IN_PLACE = dis.opmap.get("BINARY_OP"), 13

_here = threading.local()


class OutOfPlace(TorchFunctionMode):
    """While it lasts, augmented assignments of tensors that carry a gradient make new tensors of the same type, and ``KERNELS``
    are replaced where a gradient has to pass.

    That is sound because Python binds the name anew to what such a statement returns. A call of ``x.add_(y)`` looks the same
    from here but for the instruction that it came from; it stays as it is, since its caller may count on ``x``.
    """

    def __init__(self, probing: bool = False) -> None:
        super().__init__()
        self.probing = probing
        """Whether it only looks if it is needed; everything has to be computed in the ordinary way then, or it sees nothing."""
        self.met = 0
        """Augmented assignments of tensors and calls of ``KERNELS`` so far, whether or not they carried a gradient."""
        self._code: dict[CodeType, bytes] = {}

    def __enter__(self) -> OutOfPlace:
        super().__enter__()
        _decisions().append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _decisions().pop()
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in KERNELS and torch.is_grad_enabled():
            self.met += 1
            if any(isinstance(a, Tensor) and a.requires_grad for a in args):
                return KERNELS[func](*args, **(kwargs or {}))
        fresh = FRESH.get(func)
        if fresh is not None and torch.is_grad_enabled() and self._assigns(sys._getframe(1)):
            self.met += 1
            if any(isinstance(a, Tensor) and a.requires_grad for a in args):
                return fresh(*args, **(kwargs or {})).to(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def _assigns(self, caller: FrameType) -> bool:
        """Whether ``caller`` is just executing an augmented assignment."""
        code = self._code.get(caller.f_code)
        if code is None:
            code = self._code[caller.f_code] = caller.f_code.co_code
        instruction, argument = code[caller.f_lasti], code[caller.f_lasti + 1]
        return instruction in INSTRUCTIONS or (instruction == BINARY_OP and argument >= FIRST_IN_PLACE)


class Harmless:
    """Stands where the mode is known not to be needed."""


Decision = OutOfPlace | Harmless


def _decisions() -> list[Decision]:
    """What holds in this thread, outermost first."""
    if not hasattr(_here, "decisions"):
        _here.decisions = []
    found: list[Decision] = _here.decisions
    return found


def decided() -> Decision | None:
    """What holds in this thread now; None where nobody has decided anything."""
    found = _decisions()
    return found[-1] if found else None


@contextmanager
def again(decision: Decision | None) -> Iterator[None]:
    """For a forward pass that may be computed twice: what was ``decided`` as it began, or else the mode, which is always safe.

    On a GPU the second pass runs in another thread, where nothing is decided and there are no modes.
    """
    if decision is not None and (decision is decided() or isinstance(decision, Harmless)):
        yield
        return
    with OutOfPlace(decision.probing if decision is not None else False):
        yield


@contextmanager
def paused() -> Iterator[None]:
    """No mode while this lasts."""
    mode = decided()
    if not isinstance(mode, OutOfPlace):
        yield
        return
    mode.__exit__(None, None, None)
    try:
        yield
    finally:
        mode.__enter__()


class Care:
    """Puts the mode around the forward passes of one network, as few of them as is safe.

    A trusted network is one whose code was read: what it does depends on its architecture and the form of its inputs alone. For
    each form of inputs its first pass has the mode; if that met nothing, later ones do without. All others always have it, since
    a wrong guess would mean wrong gradients without any error.
    """

    def __init__(self, trusted: bool):
        self._trusted = trusted
        self._harmless: set[Hashable] = set()

    @contextmanager
    def around(self, form: Hashable) -> Iterator[None]:
        """``form`` is all of the inputs that decides which code runs: their shapes and types."""
        if not torch.is_grad_enabled():
            yield
            return
        if form in self._harmless:
            _decisions().append(Harmless())
            try:
                yield
            finally:
                _decisions().pop()
            return
        with OutOfPlace(probing=self._trusted) as mode:
            yield
        if self._trusted and not mode.met:
            self._harmless.add(form)


def without_in_place(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """``module`` with what ``OutOfPlace`` does to its augmented assignments and ``KERNELS``; changed itself.

    It is a graph as ``torch.compile`` hands it to a backend: every node's ``meta`` has an ``example_value``.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        kernel = getattr(node.target, "overloadpacket", node.target)
        plain = AUGMENTED.get(node.target) or KERNELS.get(kernel)
        values = [a.meta.get("example_value") if isinstance(a, torch.fx.Node) else a for a in node.args]
        if plain is None or not any(isinstance(v, Tensor) and v.requires_grad for v in values):
            continue
        node.target = plain
        if kernel in KERNELS:
            continue
        left = values[0]
        other: Any = values[1]
        if isinstance(left, Tensor) and torch.result_type(left, other) != left.dtype:
            with module.graph.inserting_after(node):
                same = module.graph.call_method("to", (node, left.dtype))
            node.replace_all_uses_with(same, lambda user, same=same: user is not same)
    module.recompile()
    return module
