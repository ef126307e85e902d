"""Regional compilation: ``torch.compile`` for a network's blocks, one by one, only while they are held.

A whole network breaks into pieces at every patch and hook; its blocks are compiled whole, and one graph serves all blocks that
are alike. The adapter's hooks are traced into it, and guarded: without that a graph made for layers without an adapter would
also serve layers with one, and leave the adapter out. What is compiled hangs on copies of the code, never on the host's own.
"""

from __future__ import annotations

import logging
import math
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import AtelierError, is_out_of_memory
from ..tensors.method_patch import patched
from .out_of_place import OutOfPlace, decided, paused, without_in_place

log = logging.getLogger("lora-atelier")
BACKEND = "inductor"
GRAPHS = 256
"""So many shapes and kinds of blocks may be compiled; torch's own limit of 8 is soon reached by buckets."""
APART = 0.25
"""Largest relative distance of a compiled gradient from the plain one that may be rounding, in half precisions."""


class Gradient(Protocol):
    """Where a step's gradient is added up (``FlatParameters``)."""

    gradient: Tensor

    def kept(self) -> Tensor | None: ...
    def restore(self, kept: Tensor | None) -> None: ...


class Compiled:
    """Blocks that run as compiled code. Whatever goes wrong with that costs its speed, never the run.

    Passes without gradients stay as they are. ``warn`` receives the one sentence if it cannot be done, ``cancelled`` tells the
    person's cancel from an error.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        warn: Callable[[str], None],
        cancelled: Callable[[BaseException], bool] = lambda _: False,
        backend: str = "",
    ):
        self.active = bool(blocks)
        """Whether passes with gradients are compiled."""
        self.graphs = 0
        """Graphs that were compiled so far."""
        self._blocks, self._warn, self._cancelled, self._name = list(blocks), warn, cancelled, backend or BACKEND
        self._asked = False
        self._backend = self._compile  # one and the same object: torch tells its caches apart by it
        self._functions: dict[types.FunctionType, Callable[..., object]] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """The blocks run compiled while this lasts; afterwards they, and torch's settings, are what they were."""
        if not self.active:
            yield
            return
        marked = [(tensor, set(tensor.__dict__)) for block in self._blocks for tensor in _tensors(block)]
        try:
            with self._settings(), patched(self._blocks, "forward", lambda _block, forward: self._runner(forward)):
                yield
        finally:
            for tensor, names in marked:  # the compiler writes notes on weights
                for name in tensor.__dict__.keys() - names:
                    del tensor.__dict__[name]

    def run(self, step: Callable[[], Tensor], gradient: Gradient) -> Tensor:
        """What ``step`` gives, which adds to ``gradient``.

        If it fails, it is done once more without compiled code; if that goes, compiling was to blame and is left from then on.
        """
        if not self.active:
            return step()
        before = gradient.kept()
        known = self.graphs
        try:
            found = step()
        except Exception as error:
            if self._cancelled(error) or isinstance(error, AtelierError) or is_out_of_memory(error):
                raise
            log.info("a step with compiled blocks failed", exc_info=True)
            reason = _reason(error)
        else:
            if self._asked and not self.graphs:
                self._give_up("torch found nothing in them to compile")
            if self.graphs == known or self._proved(step, gradient, before):
                return found
            reason = "their gradient is not that of the plain ones with this version of torch"
        self.active = False
        gradient.restore(before)
        found = step()
        self._give_up(reason)
        return found

    def _proved(self, step: Callable[[], Tensor], gradient: Gradient, before: Tensor | None) -> bool:
        """Whether new graphs gave the gradient that plain code gives, but for rounding; it stays what they gave.

        torch 2.11 compiled an in-place product in an autograd function to a gradient of zeros, without a word.
        """
        compiled = gradient.gradient.clone()
        gradient.restore(before)
        self.active = False
        try:
            step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("there is no memory to compare compiled blocks with plain ones")
            return True
        finally:
            self.active = True
            plain = gradient.gradient.clone()
            gradient.restore(compiled)
        far = (compiled - plain).square().sum()
        added = (plain if before is None else plain - before).square().sum()
        apart, whole = torch.stack([far, added]).tolist()  # waits for the device once
        return not math.isfinite(whole) or apart <= APART**2 * whole

    def _give_up(self, reason: str) -> None:
        self.active = False
        self._warn(f"compile: the model's blocks could not be compiled ({reason}). The run goes on without it, to the same LoRA.")

    def _runner(self, forward: Callable[..., object]) -> Callable[..., object]:
        compiled = self._of(forward)

        def run(*args: object, **kwargs: object) -> object:
            mode = decided()
            probing = isinstance(mode, OutOfPlace) and mode.probing
            if not self.active or probing or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            self._asked = True
            with paused():
                return compiled(*args, **kwargs)

        return run

    def _of(self, forward: Callable[..., object]) -> Callable[..., object]:
        """The compiled twin of ``forward``; blocks of a class share it."""
        function = getattr(forward, "__func__", None)
        if not isinstance(forward, types.MethodType) or not isinstance(function, types.FunctionType):
            return self._lazily(forward)
        if function not in self._functions:
            self._functions[function] = self._lazily(_copy(function))
        return partial(self._functions[function], forward.__self__)

    def _lazily(self, function: Callable[..., object]) -> Callable[..., object]:
        """Asked for at the first call, so that an error is one of that step."""
        made: list[Callable[..., object]] = []

        def run(*args: object, **kwargs: object) -> object:
            if not made:
                made.append(torch.compile(function, dynamic=False, backend=self._backend))
            return made[0](*args, **kwargs)

        return run

    def _compile(self, module: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., object]:
        from torch._dynamo.backends.registry import lookup_backend

        made = lookup_backend(self._name)(without_in_place(module), list(inputs))
        self.graphs += 1
        return made

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """torch's settings that compiling needs, for now."""
        try:
            import torch._dynamo.config as settings
        except Exception as error:
            self._give_up(_reason(error))
            yield
            return
        limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
        wanted = {"skip_nnmodule_hook_guards": False, limit: GRAPHS}
        with settings.patch({k: v for k, v in wanted.items() if hasattr(settings, k)}):
            yield


def _tensors(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]


def _copy(function: types.FunctionType) -> types.FunctionType:
    """The same function with code of its own; torch keeps what it compiles by code object."""
    code = function.__code__.replace()
    twin = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _reason(error: BaseException) -> str:
    """The first line of what went wrong in the end, not too long."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    text = f"{type(inner).__name__}: {lines[0]}" if lines else type(inner).__name__
    return text if len(text) <= 160 else text[:159] + "…"
