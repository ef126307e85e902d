"""What networks of the host remember from pass to pass: it is forgotten wherever weights or texts may have changed.

HiDream-O1 keeps the keys and values of its last two prompts. It tells prompts apart, but not what the weights were when it read
them, so it would go on with those of another LoRA, or with tensors of an autograd graph that is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

FORGOTTEN: dict[str, Any] = {"_kv_cache_entries": (), "_visual_cache": None}
"""By the name of the attribute; what it is when there is nothing."""


def forget(network: nn.Module) -> None:
    """Lets ``network`` begin anew."""
    for name, nothing in FORGOTTEN.items():
        if name in vars(network):
            setattr(network, name, list(nothing) if isinstance(nothing, tuple) else nothing)


@contextmanager
def forgetting(network: nn.Module) -> Iterator[None]:
    """Meanwhile it begins anew, and afterwards it remembers what it did before."""
    before = {name: value for name, value in vars(network).items() if name in FORGOTTEN}
    forget(network)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(network, name, value)
