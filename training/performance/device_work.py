"""Watch over a computation that is to be the device's work alone, so that it can be recorded there and replayed.

A recording repeats what it has seen. A number that the computer has read, drawn at random or sent from main memory would be the
same one in every replay, and nothing would tell: so it is looked for before anything is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class NotDeviceWork(RuntimeError):
    """What a computation does besides, in a few words."""


class DeviceWork(TorchDispatchMode):
    """While it lasts, NotDeviceWork is raised where a number is read, drawn at random, or crosses from or to main memory.

    The backward pass is watched too. Constants of no dimensions, which go along with a kernel's launch, may come from anywhere.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if torch.is_inference_mode_enabled():  # there, operations that are made of others come as they are
            with self:
                found = func.decompose(*args, **given)
            if found is not NotImplemented:
                return found
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags and not _drops_nothing(func, args, given):
            raise NotDeviceWork(f"it draws random numbers ({name})")
        if torch.Tag.data_dependent_output in func.tags or (
            torch.Tag.dynamic_output_shape in func.tags and (func is not torch.ops.aten.index.Tensor or _by_masks(args))
        ):
            raise NotDeviceWork(f"it waits for a number of the device ({name})")
        found = func(*args, **given)
        if func in COPIES:
            places = {tensor.device for tensor in _tensors((*args, *given.values(), found))}
            if len(places) > 1:
                raise NotDeviceWork(f"it copies between {' and '.join(sorted(place.type for place in places))}")
        if func is torch.ops.aten.lift_fresh.default and found.device.type != "cpu":
            raise NotDeviceWork("it makes numbers in main memory for the device")
        return found


def _drops_nothing(func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    """Whether ``func`` is one of the kernels for attention, random only in their dropout, and drops nothing."""
    wanted = {argument.name: argument.default_value for argument in func._schema.arguments}
    wanted |= dict(zip(wanted, args, strict=False)) | dict(given)
    return wanted.get("dropout_p") == 0


def _by_masks(args: Sequence[Any]) -> bool:
    return any(one.dtype in (torch.bool, torch.uint8) for one in args[1] if one is not None)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
