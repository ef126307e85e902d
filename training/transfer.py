"""Types by the names that the widgets give them, and the way to the device."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without waiting for what a GPU still has to do.

    A copy from ordinary memory makes the caller wait until the GPU has finished everything before it; one from pinned memory
    only takes its place in the queue. The pinned memory is not used again before the copy has been made.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
