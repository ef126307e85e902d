"""Number formats: which dtype a run computes in, and which ones a device has instructions for."""

from __future__ import annotations

import torch

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What a run computes in where a person asks for ``precision``; None leaves it to the model.

    A CPU without instructions for a half precision takes it apart number by number: float32 takes a half of that time or less.
    """
    wanted = DTYPES.get(precision)
    return wanted if wanted is None or has_native_support(wanted, device) else torch.float32


def has_native_support(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether arithmetic in ``dtype`` is more than a slow detour on ``device``."""
    if device.type != "cpu" or dtype == torch.float32:
        return True
    # Such as avx512_bf16 and amx_bf16; an older torch cannot tell, and few CPUs have any.
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    ending = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    return any(there is True for name, there in able.items() if name.endswith(ending))
