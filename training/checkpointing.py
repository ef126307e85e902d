"""Gradient checkpointing: a block's inner activations are computed again in the backward pass instead of being kept.

Costs one more forward of the blocks and saves what they would have stored (Chen et al. 2016, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .out_of_place import Decision, again, decided


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network, outermost ones only.

    They are what stands in the lists of the network. A UNet's lists hold sequences, which the host walks through itself, so
    there it is the parts of the sequence. Single layers are left out: they would be computed twice and save nothing.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, (nn.ModuleList, nn.Sequential)):
                look(child)
            elif isinstance(module, (nn.ModuleList, nn.Sequential)) and any(True for _ in child.children()):
                found.append(child)

    look(model)
    return found


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While the context lasts, the blocks keep only their inputs; afterwards nothing of it is left on them."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for block in blocks:
            before.append((block, block.__dict__.get("forward")))
            block.forward = _recomputed(block.forward)
        yield
    finally:
        for block, own in before:
            # It stood on the instance, above the class's own method, and so it goes away without a trace.
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def on_copies(decision: Decision | None, /, *args: Any, **kwargs: Any) -> Any:
        # Some blocks change their inputs in place. They get copies, or the second pass would start from changed numbers
        # and give a wrong gradient without any error.
        with again(decision):
            return forward(*(_copied(a) for a in args), **{k: _copied(v) for k, v in kwargs.items()})

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(on_copies, decided(), *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def _copied(value: Any) -> Any:
    """Tensors, alone or in lists and tuples, as copies that autograd connects with the originals."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_copied(v) for v in value)
    return value
