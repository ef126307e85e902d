"""Gradient checkpointing: a block's inner activations are recomputed in the backward pass instead of being kept.

Costs one more forward of the blocks and saves what they would have stored (Chen et al. 2016, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..tensors.method_patch import patched
from .out_of_place import again, decided


def blocks_of(model: nn.Module, whole: bool = False) -> list[nn.Module]:
    """The repeated blocks of a network, outermost ones only. A ``whole`` one that has none may keep them in its largest part
    (HiDream-O1, which is a language model with a little about it).

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
    parts = [] if found or not whole else list(model.children())
    return blocks_of(max(parts, key=_numbers)) if parts else found


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While the context lasts, the blocks keep only their inputs; afterwards nothing of it is left on them."""
    with patched(blocks, "forward", lambda _block, forward: _recomputed(forward)):
        yield


def _recomputed(forward: Callable[..., object]) -> Callable[..., object]:
    def run(*args: object, **kwargs: Any) -> object:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        decision = decided()
        # Blocks change their dict arguments (`transformer_options`); the recomputation gets them as they were.
        tables = {place: dict(value) for place, value in [*enumerate(args), *kwargs.items()] if isinstance(value, dict)}
        passes = 0

        def on_copies(*args: object, **kwargs: object) -> object:
            # Some blocks change their inputs in place. They get copies, or the second pass would start from changed numbers
            # and give a wrong gradient without any error.
            nonlocal passes
            passes += 1
            found = {} if passes == 1 else {place: dict(table) for place, table in tables.items()}
            positional = [found.get(i, _copied(a)) for i, a in enumerate(args)]
            named = {k: found.get(k, _copied(v)) for k, v in kwargs.items()}
            with again(decision):
                return forward(*positional, **named)

        return checkpoint(on_copies, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def _copied(value: object) -> object:
    """Tensors, alone or in lists and tuples, as copies that autograd connects with the originals."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_copied(v) for v in value)
    return value
