"""Sharding: of the blocks' weights each of several processes holds a part, and all of a block while that is computed (FSDP2).

What FSDP (``torch.distributed.fsdp.fully_shard``; Zhao et al. 2023, arXiv 2304.11277) is given are modules of our own, which have
the weights as their parameters and nothing else, and not the model's, whose classes, hooks and attributes it would change. While
a block is computed, forward or once more in the backward pass, its gathered weights are lent to the block. What autograd keeps of
them is memory that FSDP empties after the forward pass and fills again before the block's backward pass. The model's own tensors
are only read: they stay where they are, in main memory beside a GPU.

All processes must ask for the same blocks in the same order, since each gives its part of each.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AtelierError
from ..tensors.method_patch import patched
from .lent import Place, as_at_home, lent, places_of

WAYS = {"cpu": "gloo", "cuda": "nccl"}
"""What carries weights between devices of these kinds."""
LOOKS_AT = 2**31 - 1


def is_plain(tensor: Tensor) -> bool:
    """Whether its numbers are its memory, of which a part can be cut off."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_quantized


def check(blocks: Sequence[nn.Module], device: torch.device, way: str) -> None:
    """Refuses what cannot be sharded; ``way`` is torch's name of what the processes talk by."""
    if WAYS.get(device.type) != way:
        raise AtelierError(
            f"--shard: weights go from {device.type} to {device.type} between these processes by {way}, which cannot carry them. "
            "It takes an NVIDIA or AMD GPU for each process and a torch with NCCL, or the CPU alone; train without --shard."
        )
    if _of_torch() is None:
        raise AtelierError(f"--shard: torch {torch.__version__} has no fully_shard; 2.6 brought it. Train without --shard.")
    if not blocks:
        raise AtelierError("--shard: this model has no blocks that could be divided. Train it without --shard.")
    packed = next((tensor for *_, tensor in places_of(_modules(blocks)) if not is_plain(tensor)), None)
    if packed is not None:
        form = getattr(packed, "_layout_cls", None) or getattr(packed, "_layout_type", None) or type(packed).__name__
        raise AtelierError(
            f"--shard: this model's weights are packed in a format ({form}) of which no part can be cut off. Load it in bf16, "
            "fp16 or plain fp8, or train it without --shard."
        )


def _of_torch() -> Any:
    """FSDP2's function; None where this torch has none."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        return None
    return fully_shard


class Shards:
    """The parts of a model's blocks that this process holds, among those of ``group`` (torch's)."""

    def __init__(self, group: Any):
        self._group = group
        self._mesh: Any = None
        self.held = 0
        """Bytes of the parts that are on the device now."""
        self._order = 0

    def asked(self) -> int:
        """A number that is equal in processes which have asked for the same blocks in the same order since the last time."""
        order, self._order = self._order, 0
        return order

    @contextmanager
    def on(self, network: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
        """While it lasts ``blocks``, which are parts of ``network``, compute with weights that are gathered on ``device``.

        Nothing is sent before the network is asked. What else the network has is to be on the device already.
        """
        try:
            with self._divided(network, blocks, device):
                yield
        finally:
            gc.collect()  # FSDP's objects know each other, and the device is wanted for something else next

    @contextmanager
    def _divided(self, network: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
        from torch.distributed.device_mesh import DeviceMesh

        fully_shard = _of_torch()
        if self._mesh is None:
            self._mesh = DeviceMesh.from_group(self._group, device.type)
        parts = []
        for block in blocks:
            part = _Part(block, device)
            if part.cut:
                fully_shard(part, mesh=self._mesh, reshard_after_forward=True)
            parts.append(part)
        whole = _Whole(parts)
        fully_shard(whole, mesh=self._mesh, reshard_after_forward=True)
        self.held = sum(part.held() for part in parts)
        numbered = {block: (number, part) for number, (block, part) in enumerate(zip(blocks, parts, strict=True))}

        def around(block: nn.Module, forward: Callable[..., object]) -> Callable[..., object]:
            number, part = numbered[block]

            def run(*args: object, **kwargs: object) -> object:
                if not _goes_back():  # there, each process computes twice what it has no room for
                    self._order = (31 * self._order + 2 * number + torch.is_grad_enabled() + 1) % LOOKS_AT
                call = _Call(forward, args, kwargs)
                return part(call.first(), call)

            return run

        def from_outside(_: nn.Module, forward: Callable[..., object]) -> Callable[..., object]:
            return lambda *args, **kwargs: whole(_Call(forward, args, kwargs))

        try:
            with patched(blocks, "forward", around), patched([network], "forward", from_outside):
                yield
        finally:
            self.held = 0


class _Call:
    """A call of which FSDP sees one tensor alone: it would copy dictionaries that blocks change.

    It tells by that tensor's gradient that the block's backward pass is over, which goes back to the block's beginning last.
    Seeing others too, it would add up the gradients of those that all blocks share (a level, a text) in another order.
    """

    def __init__(self, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]):
        self._forward, self._args, self._kwargs = forward, args, kwargs

    def first(self) -> Tensor | None:
        """The first one that carries a gradient."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            if tensor.requires_grad:
                found.append(tensor)
            return tensor

        for value in (*self._args, *self._kwargs.values()):
            _replaced(value, note)
        return found[0] if found else None

    def __call__(self, seen: Tensor | None = None) -> object:
        first = self.first() if seen is not None else None
        if seen is None or first is None:
            return self._forward(*self._args, **self._kwargs)

        def with_hook(tensor: Tensor) -> Tensor:
            return seen if tensor is first else tensor

        args = [_replaced(value, with_hook) for value in self._args]
        return self._forward(*args, **{name: _replaced(value, with_hook) for name, value in self._kwargs.items()})


def _replaced(value: object, other: Callable[[Tensor], Tensor]) -> object:
    """``value`` with what ``other`` gives for the tensors that it is or, as a list or tuple, has."""
    if isinstance(value, Tensor):
        return other(value)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields") and any(isinstance(v, Tensor) for v in value):
        return type(value)(_replaced(one, other) for one in value)
    return value


class _Part(nn.Module):
    """A block's weights, which become this process's part of them. What has no numbers to divide, and buffers, stay whole."""

    def __init__(self, block: nn.Module, device: torch.device):
        super().__init__()
        self._places: list[Place] = places_of(block.modules())
        self._names: list[str] = []
        self._beside: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        with torch.no_grad():
            for *_, home in self._places:
                name = names.get(id(home))
                if name is None:
                    name = names[id(home)] = f"of_{len(names)}"
                    copy = home.detach().to(device)
                    if isinstance(home, nn.Parameter) and home.ndim and home.numel():
                        # As bytes: some versions of FSDP want one format in a block, and some blocks have two.
                        self.register_parameter(name, nn.Parameter(copy.contiguous().view(torch.uint8), requires_grad=False))
                    else:
                        self._beside[name] = as_at_home(home, copy)
                self._names.append(name)

    @property
    def cut(self) -> bool:
        return bool(self._parameters)

    def held(self) -> int:
        """Bytes of it here, between two passes."""
        of: Any = self.parameters()
        bytes_of_parts: int = sum(one.to_local().nbytes for one in of)
        return bytes_of_parts + sum(tensor.nbytes for tensor in self._beside.values())

    def forward(self, seen: Tensor | None, call: _Call) -> object:
        here = [self._here(name, home) for name, (*_, home) in zip(self._names, self._places, strict=True)]
        with lent(self._places, here):
            del here
            return _replaced(call(seen), _own)

    def _here(self, name: str, home: Tensor) -> Tensor:
        if name in self._beside:
            return self._beside[name]
        with torch.no_grad():
            return as_at_home(home, self.get_parameter(name).view(home.dtype))


def _own(answer: Tensor) -> Tensor:
    """``answer``, with memory of its own where the network changing it in place would drop FSDP's hook from it."""
    return answer.clone() if answer.requires_grad and answer._base is not None else answer


class _Whole(nn.Module):
    """What a pass of the network begins and ends with, so that all blocks share FSDP's streams."""

    def __init__(self, parts: Sequence[_Part]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, call: _Call) -> object:
        return _replaced(call(), _own)


def _modules(blocks: Sequence[nn.Module]) -> Iterator[nn.Module]:
    return (module for block in blocks for module in block.modules())


def _goes_back() -> bool:
    """Whether a backward pass computes something here."""
    return bool(torch._C._current_graph_task_id() != -1)
