"""Attention while a model is held: torch's own kernel instead of what the host or a node has chosen for sampling.

Some of those kernels have no backward pass; others keep every probability for it, and choose their chunks by the memory that is
free, so that a pass that is computed again need not be the same, and none can be compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy.ldm.modules import attention as host
from torch import Tensor

CHOSEN = ("optimized_attention", "optimized_attention_masked")
"""Names of the host's choice in its networks."""


def attention(_chosen: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
    """For ``optimized_attention_override`` in a network's options, which outranks a node's own."""
    answer: Tensor = host.attention_pytorch(*args, **kwargs)
    return answer


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Meanwhile it is the host's choice for all networks: some (PixArt, HunyuanDiT, ERNIE-Image) do not hand on the options."""
    before: list[tuple[dict[str, object], str, object]] = []
    try:
        for title, module in list(sys.modules.items()):
            names = vars(module) if title.startswith("comfy.ldm.") and module is not None else {}
            for name in CHOSEN:
                if name in names and names[name] is not host.attention_pytorch:
                    before.append((names, name, names[name]))
                    names[name] = host.attention_pytorch
        yield
    finally:
        for names, name, chosen in reversed(before):
            names[name] = chosen
