"""Resident twins of patchers whose weights the host pages in and out, for what needs weights that stay where they are.

The host makes a twin from the file that the model was loaded from: a second model with the same patches, in main memory at first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch

from ..errors import AtelierError
from .weights import lay_aside, same_weights

GB = 10**9
MARGIN = 1.1
"""A model's bytes times this should be free, which is what the host itself asks for."""


class NoTwin(RuntimeError):
    """The reason for which a paged model is not made resident for a while."""


def resident(patcher: Any, widget: str) -> Any:
    """``patcher``, or its twin whose weights stay where they are."""
    if not getattr(patcher, "is_dynamic", lambda: False)():
        return patcher
    if patcher.injections:
        raise AtelierError(
            f"{widget}: another node injects something into this model beside its weights, such as Load LoRA (Bypass), and its "
            "weights are paged in and out while it works. It would be missing from what is trained. Use the stock Load LoRA "
            "instead, or start ComfyUI with --disable-dynamic-vram."
        )
    try:
        return patcher.get_non_dynamic_delegate()
    except RuntimeError as error:
        raise AtelierError(
            f"{widget}: this loader's weights are paged in and out while the model works, which cannot be trained. Start "
            "ComfyUI with --disable-dynamic-vram, or use a stock loader."
        ) from error


def put_twin_aside(twin: Any, origin: Any) -> None:
    """Takes a patcher's resident ``twin`` off the device, which nobody knows any more once its run is over.

    The host would take the patcher that it was made from for it, whose weights are others: so it could never free it.
    """
    if twin.model is not origin.model:
        lay_aside(twin)


def beside_twin(patcher: Any, twin: Any, origin: Any) -> Any:
    """``patcher``, which draws in the pauses of a run on ``twin``; or the same copy of the twin where both come of one model.

    ``origin`` is the patcher that the twin was made from. So the device never holds one model twice, but where other nodes inject
    something into the modules of ``patcher``'s own, which the twin would draw without.
    """
    if patcher.model is not origin.model or twin.model is origin.model or patcher.injections:
        return patcher
    return patcher.clone(disable_dynamic=True, model_override=twin.get_clone_model_override())


@contextmanager
def twin_for_sampling(patcher: Any, network: str, beside: int) -> Iterator[Any]:
    """The twin of a paged ``patcher``, which samples the very same pictures, where it fits its device with ``beside`` bytes.

    ``network`` is the name of the part whose weights are compared. Afterwards the twin is off the device, and gone unless it was
    there before. NoTwin, before anything was moved, where there can be none.
    """
    known = getattr(patcher, "non_dynamic_delegate_model", None)
    _check_room(patcher, beside, copy=known is None)
    try:
        twin = patcher.get_non_dynamic_delegate()
    except Exception as error:  # the host reads the model's file again, whatever has become of it
        raise NoTwin(f"the host cannot load it a second time: {str(error) or type(error).__name__}") from error
    try:
        if not same_weights(patcher, twin, network):
            raise NoTwin("its file holds other weights now than those that were loaded")
        lay_aside(patcher)  # else its pages would be in the twin's way
        yield twin
    finally:
        put_twin_aside(twin, patcher)
        patcher.non_dynamic_delegate_model = known


def _check_room(patcher: Any, beside: int, copy: bool) -> None:
    management = comfy.model_management
    if patcher.patches:
        raise NoTwin("what other nodes have laid on its weights, such as a LoRA, would be rounded otherwise in a copy")
    if patcher.injections:
        raise NoTwin("what other nodes inject beside its weights would be missing from a copy")
    if management.DISABLE_SMART_MEMORY:
        raise NoTwin("the host puts models aside after each use")
    size = MARGIN * patcher.model_size()
    main = management.get_free_memory(torch.device("cpu"))
    if copy and size > main:
        raise NoTwin(f"a copy takes {size / GB:.1f} GB of main memory, of which {main / GB:.1f} GB are free")
    device = patcher.load_device
    loaded = [one for one in management.current_loaded_models if one.model is not None and one.device == device]
    # All that is loaded there can go; of the model's own pages none are needed beside its twin.
    room = management.get_free_memory(device) + sum(one.model_loaded_memory() for one in loaded)
    needed = size + max(beside + management.extra_reserved_memory(), management.minimum_inference_memory())
    if needed > room:
        raise NoTwin(f"with what is needed beside it it would take {needed / GB:.1f} GB of the device's {room / GB:.1f} GB")
