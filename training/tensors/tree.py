"""Values made of tensors and constants: taken apart into both, and put together again with other tensors."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class Opaque(TypeError):
    """A value of a kind that may hold anything, tensors too."""


def taken_apart(value: object) -> tuple[list[Tensor], Hashable]:
    """The tensors in ``value``, and all else of it, equal for equal values.

    ``value`` may be a tensor, a constant, a dataclass, or a list, tuple or mapping of such. Opaque for anything else.
    """
    tensors: list[Tensor] = []
    return tensors, _form(value, tensors)


def _form(value: object, tensors: list[Tensor]) -> Hashable:
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor
    if isinstance(value, CONSTANTS):
        return type(value), value
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple((f.name, _form(getattr(value, f.name), tensors)) for f in fields(value))
    if type(value) is list or type(value) is tuple:
        return type(value), tuple(_form(one, tensors) for one in value)
    if isinstance(value, Mapping):
        return dict, tuple((_name(key), _form(one, tensors)) for key, one in value.items())
    raise Opaque(type(value).__name__)


def _name(key: object) -> Hashable:
    if not isinstance(key, CONSTANTS):
        raise Opaque(type(key).__name__)
    return key


def put_together(tensors: Sequence[Tensor], form: Hashable) -> Any:
    """What ``taken_apart`` gave this ``form`` for, with ``tensors`` in the places of its own."""
    return _made(iter(tensors), form)


def _made(tensors: Iterator[Tensor], form: Any) -> Any:
    if form is Tensor:
        return next(tensors)
    kind, inside = form
    if issubclass(kind, CONSTANTS):
        return inside
    if kind is list or kind is tuple:
        return kind(_made(tensors, one) for one in inside)
    named = {name: _made(tensors, one) for name, one in inside}
    return named if kind is dict else kind(**named)
