"""Temporary method patches on single modules, without a trace afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


@contextmanager
def patched(
    modules: Iterable[nn.Module], method: str, make: Callable[[nn.Module, Callable[..., T]], Callable[..., T]]
) -> Iterator[None]:
    """While it lasts, every module's ``method`` is ``make(module, the method it had)``.

    The new one stands on the instance, above the class's own, and so it goes away without a trace; one that stood there before
    (another node's patch) is put back.
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            usual = getattr(module, method)
            before.append((module, module.__dict__.get(method)))
            setattr(module, method, make(module, usual))
        yield
    finally:
        for module, own in reversed(before):
            module.__dict__.pop(method, None)
            if own is not None:
                setattr(module, method, own)
