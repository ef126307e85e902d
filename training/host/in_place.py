"""The host's functions that change tensors in place by name, which autograd may still need; rewritten while a model is held."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import FunctionType

from ..performance.rebinding import rebound

READ: dict[str, tuple[str, ...]] = {
    "comfy.ldm.lightricks.model": ("BasicTransformerBlock.forward",),
    "comfy.ldm.pixeldit.modules": ("apply_adaln_", "PiTBlock.forward"),
}
"""Functions that were read in every version that is supported: each returns what it has changed, and no caller counts on more."""


def functions() -> Iterator[FunctionType]:
    """Those of them that are there and are the host's own; another node may have put something else in their places."""
    for title, names in READ.items():
        module = sys.modules.get(title)
        for name in names:
            found: object = module
            for part in name.split("."):
                found = getattr(found, part, None)
            if isinstance(found, FunctionType) and (found.__module__, found.__qualname__) == (title, name):
                yield found


def out_of_place() -> AbstractContextManager[None]:
    """While it lasts, they make new tensors."""
    return rebound(functions())
