"""Regional compilation: ``torch.compile`` for a network's blocks, one by one, only while they are held.

A whole network breaks into pieces at every patch and hook; its blocks are compiled whole or not at all, and one graph serves all
blocks that are alike. The adapter's hooks are traced into it, and guarded: without that a graph made for layers without an
adapter would also serve layers with one, and leave the adapter out. What is compiled hangs on copies of the code, never on the
host's own.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import AtelierError, is_out_of_memory
from ..tensors.method_patch import patched
from .block_kinds import Kind, Kinds, Pattern, carries, regions
from .out_of_place import OutOfPlace, decided, paused, without_in_place

log = logging.getLogger("lora-atelier")
BACKEND = "inductor"
GRAPHS = 32
"""So often one kind of block may be compiled: for its first size, for any, and where layers differ in what is beside them."""
APART = 0.25
"""Largest relative distance of a compiled gradient from the plain one that may be rounding, in half precisions."""


class Gradient(Protocol):
    """Where a step's gradient is added up (``FlatParameters``)."""

    gradient: Tensor

    def kept(self) -> Tensor | None: ...
    def restore(self, kept: Tensor | None) -> None: ...


class Compiled:
    """Blocks that run as compiled code. Whatever goes wrong with that costs its speed, never the run.

    A block is compiled in the second step that has it: the first shows what carries a gradient. Passes without gradients stay as
    they are. ``warn`` receives a sentence if something cannot be compiled, ``cancelled`` tells the person's cancel from an error.
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
        self.settled = not blocks
        """Whether the last step that ``run`` did was as all further ones of its sizes will be: nothing was compiled, compared or
        met for the first time. Such a step can be captured as a CUDA graph, called directly instead of through ``run``."""
        self._blocks, self._warn, self._cancelled, self._name = regions(blocks), warn, cancelled, backend or BACKEND
        self._backend = self._compile  # one and the same object: torch tells its caches apart by it
        self._kinds = Kinds(self._lazily)
        self._told: set[Kind] = set()
        self._home = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """The blocks run compiled while this lasts; afterwards they, and torch's settings, are what they were."""
        if not self.active:
            yield
            return
        marked = [(tensor, set(tensor.__dict__)) for block in self._blocks for tensor in _tensors(block)]
        self._home = threading.get_ident()
        try:
            with self._settings(), patched(self._blocks, "forward", self._runner):
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
            self._look_back(known)
            if self.graphs == known or self._proved(step, gradient, before):
                return found
            reason = "their gradient is not that of the plain ones with this version of torch"
        self.active = False
        gradient.restore(before)
        found = step()
        self._give_up(reason)
        return found

    def _look_back(self, known: int) -> None:
        """After a step that went well, with ``known`` graphs before it: what it has shown of the kinds of blocks."""
        new = [kind for kind in self._kinds if not kind.ready]
        self.settled = not new and self.graphs == known
        for kind in new:
            kind.ready = True
        left = [kind for kind in self._kinds if kind.plain and kind not in self._told]
        if left and all(kind.plain for kind in self._kinds if kind.ready and kind not in new) and not self.graphs:
            self._give_up(left[0].plain)
        elif left:
            self._told.update(left)
            names = ", ".join(dict.fromkeys(kind.name for kind in left))
            self._warn(f"compile: some blocks run as plain code, slower and to the same LoRA: {names} ({left[0].plain}).")

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
        self.active, self.settled = False, True
        self._warn(f"compile: the model's blocks could not be compiled ({reason}). The run goes on without it, to the same LoRA.")

    def _runner(self, block: nn.Module, forward: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            mode = decided()
            probing = isinstance(mode, OutOfPlace) and mode.probing
            if not self.active or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            inputs = [*args, *kwargs.values()]
            kind, given = self._kinds.of(block, forward, inputs), carries(*inputs)
            if not kind.ready:
                found = forward(*args, **kwargs)
                kind.note(block, inputs, found)
                return found
            if probing or kind.plain or not kind.learns(block, given):
                return forward(*args, **kwargs)
            found = self._call(kind, forward, args, kwargs, given)
            return forward(*args, **kwargs) if kind.plain else found

        return run

    def _call(
        self, kind: Kind, forward: Callable[..., object], args: Sequence[object], kwargs: dict[str, object], given: Pattern
    ) -> object:
        """What compiled code gives. If torch cannot trace it as one graph, none of it has run, and ``kind`` is plain then."""
        from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

        over: Any = getattr(torch._dynamo.exc, "FailOnRecompileLimitHit", ())
        try:
            with paused(), self._settings_elsewhere():
                return kind(forward, args, kwargs, given)
        except BackendCompilerFailed:
            raise
        except over:
            kind.plain = kind.plain or f"they come in more than {GRAPHS} forms"
        except TorchDynamoException as error:
            log.info("a block cannot be traced", exc_info=True)
            kind.plain = _reason(error)
        return None

    def _lazily(self, function: Callable[..., object]) -> Callable[..., object]:
        """Asked for at the first call, so that an error is one of that step."""
        made: list[Callable[..., object]] = []

        def run(*args: object, **kwargs: object) -> object:
            if not made:
                made.append(torch.compile(function, fullgraph=True, dynamic=None, backend=self._backend))
            return made[0](*args, **kwargs)

        return run

    def _compile(self, module: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., object]:
        from torch._dynamo.backends.registry import lookup_backend

        # Graphs of inductor's own would be in the way of one that is captured around the blocks.
        more = {"config_patches": {"triton.cudagraphs": False}} if self._name == "inductor" else {}
        made = lookup_backend(self._name)(without_in_place(module), list(inputs), **more)
        self.graphs += 1
        return made

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """torch's settings that compiling needs, for now and for this thread."""
        try:
            import torch._dynamo.config as settings
        except Exception as error:
            self._give_up(_reason(error))
            yield
            return
        limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
        wanted = {
            "skip_nnmodule_hook_guards": False,
            limit: GRAPHS,
            "capture_dynamic_output_shape_ops": True,
        }
        with settings.patch({k: v for k, v in wanted.items() if hasattr(settings, k)}):
            yield

    @contextmanager
    def _settings_elsewhere(self) -> Iterator[None]:
        """The settings in a thread that is not the one of ``on``: on a GPU blocks are computed again in autograd's own."""
        if threading.get_ident() == self._home:
            yield
        else:
            with self._settings():
                yield


def _tensors(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]


def _reason(error: BaseException) -> str:
    """The first line of what went wrong in the end, not too long."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    text = f"{type(inner).__name__}: {lines[0]}" if lines else type(inner).__name__
    return text if len(text) <= 160 else text[:159] + "…"
