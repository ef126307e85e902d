"""What ``step_time`` measures, and what all its sides are given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import _models
import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""The time of day, or what the processor gave to this process: the latter compares also where other work takes most of it."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Case:
    """What is measured."""

    model: str
    side: str
    """``ours``, ``stock``, ``stock_bypass`` or ``peft``."""
    targets: str
    """``attention``, ``attention + feed-forward`` or ``every layer``; the stock node knows no choice."""
    pixels: int
    batch: int
    dtype: str
    steps: int
    rank: int = 16
    copies: bool = False
    """Whether copies of the base are looked for as well."""
    profile: bool = False
    clock: str = "wall"
    thrift: str = "plain"
    """What our step does for less memory, one of ``low_memory.WAYS``."""


@dataclass
class Found:
    """What a side tells of itself."""

    layers: int = 0
    parameters: int = 0
    ends: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """Sentences for the person."""


Train = Callable[[Case, Found], None]
"""Trains ``steps`` + 1 steps at the case's size."""
Forward = Callable[[int], list[float]]
"""Seconds of so many forward passes without gradients, at the case's size."""


def latents_of(case: Case, count: int) -> torch.Tensor:
    kind = _models.kind_of(case.model)
    return torch.randn(count, kind.channels, case.pixels // 8, case.pixels // 8, generator=torch.Generator().manual_seed(1))


def text_of(case: Case) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(cond, extras) as a text encoder gives them."""
    kind, stream = _models.kind_of(case.model), torch.Generator().manual_seed(2)
    pooled = {"pooled_output": torch.randn(1, kind.pooled, generator=stream)} if kind.pooled else {}
    return torch.randn(1, kind.tokens, kind.width, generator=stream), pooled


def load_into_host(case: Case) -> Any:
    """The MODEL that a loader gives, in the number format of the case."""
    import comfy.sd

    with torch.inference_mode():
        options = {"dtype": DTYPES[case.dtype]}
        return comfy.sd.load_diffusion_model(str(_models.file_of(case.model, case.dtype)), model_options=options)


def seconds_of(work: Callable[[], object], count: int, clock: str = "wall") -> list[float]:
    """Of each of ``count`` runs, after one that warms up."""
    out, now = [], CLOCKS[clock]
    for _ in range(count + 1):
        start = now()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        out.append(now() - start)
    return out[1:]
