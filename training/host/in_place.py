"""The host's functions that change tensors in place by name, which autograd may still need; rewritten while a model is held."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FunctionType

from torch import nn

from ..errors import AtelierError
from ..performance.rebinding import is_lost, rebound

READ: dict[str, tuple[str, ...]] = {
    "comfy.ldm.lightricks.model": ("BasicTransformerBlock.forward",),
    "comfy.ldm.pixeldit.modules": ("apply_adaln_", "PiTBlock.forward"),
}
"""Functions that were read in every version that is supported: each returns what it has changed, and no caller counts on more."""


def functions() -> Iterator[FunctionType]:
    """Those of them that are there and are the host's own."""
    return (found for title, name, found in _places() if isinstance(found, FunctionType) and _is_its_own(title, name, found))


def _places() -> Iterator[tuple[str, str, object]]:
    """(module, name, what is there) of those that this version of the host has and has loaded."""
    for title, names in READ.items():
        for name in names:
            found: object = sys.modules.get(title)
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is not None:
                yield title, name, found


def _is_its_own(title: str, name: str, found: object) -> bool:
    """Whether nobody has put something else there, if with the names of what was there (``functools.wraps``)."""
    if not isinstance(found, FunctionType) or hasattr(found, "__wrapped__"):
        return False
    code, file = found.__code__, getattr(sys.modules[title], "__file__", None) or ""
    return (
        (found.__module__, found.__qualname__, code.co_name) == (title, name, name.rpartition(".")[2])
        and Path(code.co_filename).name == Path(file).name
    )  # fmt: skip


def out_of_place() -> AbstractContextManager[None]:
    """While it lasts, they make new tensors."""
    return rebound(functions())


def check(network: nn.Module) -> None:
    """AtelierError where one of them is part of ``network`` and its source is not what runs, or another node's is in its place.

    Under checkpointing autograd would not notice that what it needs is changed, and the gradient be wrong.
    """
    used = {kind.__module__ for module in network.modules() for kind in type(module).__mro__}
    others = [f"{title}.{name}" for title, name, found in _places() if title in used and not _is_its_own(title, name, found)]
    if others:
        raise AtelierError(
            f"model: another node pack has put something of its own in the place of {others[0]}, which training this model needs "
            "as ComfyUI has it. Disable that pack and restart ComfyUI."
        )
    lost = next((one for one in functions() if one.__module__ in used and is_lost(one)), None)
    if lost is not None:
        raise AtelierError(
            f"{lost.__code__.co_filename}: training this model needs this file as it was when ComfyUI was started, and it has "
            "changed since then or cannot be read. Restart ComfyUI."
        )
