"""Optimizers by the name in the widget. All come from libraries; here they are only found, checked and built."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..config import OptimizerConfig
from ..errors import AtelierError


def build(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over ``parameters``, which already lie on their device.

    Raises AtelierError where a library is missing or has no kernels for the device.
    """
    parameters = list(parameters)
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.name == "AdamW":
        return torch.optim.AdamW(parameters, fused=parameters[0].device.type in ("cpu", "cuda"), **settings)
    if config.name == "SGD":
        return torch.optim.SGD(parameters, momentum=0.9, **settings)
    return _eight_bit(parameters, settings)


def _eight_bit(parameters: list[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        import bitsandbytes
    except Exception as error:  # a broken CUDA set-up raises more than ImportError here
        raise AtelierError(
            f"optimizer: AdamW8bit needs the package bitsandbytes, which cannot be loaded ({error}). "
            "Install it, or choose AdamW, its full-precision twin."
        ) from error
    if parameters[0].device.type != "cuda":
        raise AtelierError("optimizer: AdamW8bit runs on CUDA GPUs only; choose AdamW, its full-precision twin.")
    return bitsandbytes.optim.AdamW8bit(parameters, **settings)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
