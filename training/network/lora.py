"""LoRA: y = f(x) + strength * scale * B(A(x)), with f the frozen layer (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALayer(nn.Module):
    """The low-rank branch of one Linear or Conv2d.

    ``down`` is (rank, in) or (rank, in, kh, kw), ``up`` is (out, rank) or (out, rank, 1, 1); both float32 whatever the model
    computes in. ``down`` starts kaiming-uniform(a = sqrt 5), ``up`` at zero, so that training starts at the base model.
    """

    def __init__(self, layer: nn.Module, rank: int, scale: float, generator: torch.Generator | None = None):
        super().__init__()
        self.scale = scale
        self.conv: dict[str, Any] | None = None
        # Any, since a quantised layer need not be torch's own class: only the attributes count.
        source: Any = layer
        if is_conv(layer):
            self.conv = {k: getattr(source, k) for k in ("stride", "padding", "dilation")}
            shape_down: tuple[int, ...] = (rank, source.in_channels, *source.kernel_size)
            shape_up: tuple[int, ...] = (source.out_channels, rank, 1, 1)
        else:
            shape_down, shape_up = (rank, source.in_features), (source.out_features, rank)
        bound = 1 / math.sqrt(math.prod(shape_down[1:]))  # kaiming-uniform with a = sqrt 5
        self.down = nn.Parameter((torch.rand(shape_down, generator=generator) * 2 - 1) * bound)
        self.up = nn.Parameter(torch.zeros(shape_up))

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def forward(self, x: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """``x`` as the frozen layer receives it; ``strength`` a number or one number a row of ``x``'s batch, (B,)."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        conv = self.conv
        out = F.linear(F.linear(x, down), up) if conv is None else F.conv2d(F.conv2d(x, down, **conv), up)
        if isinstance(strength, Tensor):
            strength = _fit_rows(strength, out)
        return out * (self.scale * strength)


def _fit_rows(strength: Tensor, out: Tensor) -> Tensor:
    """Stretch one strength a picture to the rows of a layer that folds tokens or chunks into its first dimension."""
    rows = out.shape[0]
    if rows % strength.shape[0] != 0:
        raise ValueError(f"{strength.shape[0]} strengths do not fit a layer with {rows} rows")
    strength = strength.repeat_interleave(rows // strength.shape[0])
    return strength.to(out.dtype).view(-1, *[1] * (out.ndim - 1))


def is_conv(layer: nn.Module) -> bool:
    return hasattr(layer, "kernel_size") and getattr(layer.weight, "ndim", 0) == 4 and getattr(layer, "groups", 1) == 1


def is_linear(layer: nn.Module) -> bool:
    """True for Linear layers of any kind, quantised ones included, which need not derive from ``nn.Linear``."""
    return hasattr(layer, "in_features") and hasattr(layer, "out_features") and hasattr(layer, "weight")
