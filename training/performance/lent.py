"""Weights lent to modules: tensors in the places of their own for a while, the same numbers on another device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..tensors.method_patch import patched

Place = tuple[dict[str, Any], str, Tensor]
"""A parameter or buffer where a module keeps it: (registry, name, the tensor at home)."""


def places_of(modules: Iterable[nn.Module]) -> list[Place]:
    registries = (registry for module in modules for registry in (module._parameters, module._buffers))
    return [(registry, name, tensor) for registry in registries for name, tensor in registry.items() if tensor is not None]


def as_at_home(home: Tensor, copy: Tensor) -> Tensor:
    return nn.Parameter(copy, requires_grad=False) if isinstance(home, nn.Parameter) else copy


@contextmanager
def lent(places: Sequence[Place], here: Sequence[Tensor]) -> Iterator[None]:
    """The tensors ``here`` in these places, for now."""
    for (registry, name, _), tensor in zip(places, here, strict=True):
        registry[name] = tensor
    del here
    try:
        yield
    finally:
        for registry, name, home in places:
            registry[name] = home


@contextmanager
def visiting(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """While it lasts the weights of ``modules``, which lie elsewhere, come to ``device`` for each of their passes and go again.

    For what is hardly ever asked: nothing comes ahead of time.
    """

    def around(module: nn.Module, forward: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            gone = [place for place in places_of(module.modules()) if place[2].device != device]
            with torch.no_grad():
                here = [as_at_home(place[2], place[2].detach().to(device)) for place in gone]
            with lent(gone, here):
                del here
                return forward(*args, **kwargs)

        return run

    with patched(modules, "forward", around):
        yield
