"""Activation offloading: what autograd saves for the backward pass leaves the GPU and comes back when it is needed.

Under gradient checkpointing that is the blocks' inputs. Weights stay where they are, as they would not get any less by a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALLEST = 2**20
"""Bytes; tensors below this size stay on the device."""
NOTHING_TO_DO = "offload: the model computes in main memory already, so there is nothing to offload."


def can_offload(device: torch.device) -> bool:
    """Whether ``device`` has a memory of its own."""
    return device.type not in ("cpu", "mps", "meta")


def place(tensor: Tensor) -> int | None:
    """Where the storage of a tensor begins: equal for all its views. None if it has no plain storage (some quantised ones)."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return None
    storage = tensor.untyped_storage()
    # Storages without numbers begin nowhere; each is told by its own object.
    return storage._cdata if tensor.is_meta else storage.data_ptr() or None


def places(tensors: Iterable[Tensor]) -> set[int]:
    """The storages of ``tensors``."""
    return {found for tensor in tensors if (found := place(tensor)) is not None}


@contextmanager
def offloaded(weights: Iterable[Tensor], smallest: int = SMALLEST) -> Iterator[None]:
    """While it lasts, what autograd keeps goes to main memory, all but ``weights``, their views and what is small.

    A copy is made as the tensor is kept and comes back in the backward pass, both in the order of the device's own stream, so
    nobody waits for it. Gradients are the same but for rounding.
    """
    staying = places(weights)

    def pack(tensor: Tensor) -> tuple[Tensor, int | torch.device]:
        where = place(tensor)
        if where is None or where in staying or tensor.nbytes < smallest:
            return tensor, tensor._version
        # Like it also in the order of its numbers, which compiled code counts on.
        parked = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return parked.copy_(tensor, non_blocking=tensor.is_cuda), tensor.device

    def unpack(packed: tuple[Tensor, int | torch.device]) -> Tensor:
        tensor, fact = packed
        if isinstance(fact, torch.device):
            return tensor.to(fact, non_blocking=fact.type == "cuda")
        if tensor._version != fact:  # autograd does not look once somebody else keeps its tensors
            raise RuntimeError("a tensor that is needed for the gradient was changed in place")
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
