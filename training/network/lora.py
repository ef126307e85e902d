"""LoRA: D(x) = scale * B(A(x)) (Hu et al. 2021, arXiv 2106.09685); on a convolution this is what others call LoCon."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused_linear
from .adapter_layer import AdapterLayer, Strength, times
from .base_layer import is_conv, is_linear
from .dropout import kept_elements

__all__ = ["LoRALayer", "is_conv", "is_linear"]


def shares(scale: float, lean: float = 1.0) -> tuple[float, float]:
    """(a factor for A, one for B) whose product ``scale`` is: B's the power of two that is nearest to its root.

    In half precision a number that is made much smaller loses digits; so parted, a scale of 1/128 costs neither side more than a
    factor of 16. The shares of 1 / ``scale`` undo those of ``scale``. ``lean``: how many times larger A's numbers are than B's;
    afterwards they are of one size.
    """
    of_up = 2.0 ** round(math.log2(abs(scale) * lean) / 2) if scale else 1.0
    return scale / of_up, of_up


class LoRALayer(AdapterLayer):
    """The low-rank branch of one Linear or Conv2d.

    ``down`` is (rank, in) or (rank, in, kh, kw), ``up`` is (out, rank) or (out, rank, 1, 1); both float32 whatever the model
    computes in. ``down`` starts kaiming-uniform(a = sqrt 5), ``up`` at zero, so that training starts at the base model.
    """

    algorithm = "LoRA"

    def __init__(self, layer: nn.Module, rank: int, scale: float, generator: torch.Generator | None = None):
        super().__init__(layer, rank, scale)
        outputs, *inputs = self.shape
        bound = 1 / math.sqrt(math.prod(inputs))  # kaiming-uniform with a = sqrt 5
        self.down = nn.Parameter((torch.rand((rank, *inputs), generator=generator) * 2 - 1) * bound)
        self.up = nn.Parameter(torch.zeros((outputs, rank, *[1] * (len(inputs) - 1))))

    @property
    def folded(self) -> Mapping[str, float]:
        # Not B: in fp16 its numbers, which begin at zero, have no digits to lose.
        return {"down": self.scale}

    def _matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
        """A, B and what their product is still to be multiplied with."""
        (down, folded), (up, _) = self.used("down", dtype), self.used("up", dtype)
        return down, up, 1.0 if folded else self.scale

    @property
    def fuses(self) -> bool:
        return self.magnitude is None and self.conv is None

    def fused_forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        down, up, scale = self._matrices(x.dtype)
        return fused_linear.linear(layer, x, down, up, scale)

    def add_to(self, layer: nn.Module, x: Tensor, output: Tensor, strength: Strength) -> Tensor:
        pictures = self.conv is not None and output.ndim == 4 and output.is_contiguous()
        if self.magnitude is not None or output.dtype != x.dtype or (self.conv is not None and not pictures):
            return super().add_to(layer, x, output, strength)
        # One fused multiplication and addition: no tensor of the output's size between.
        hidden, up, scale = self._bottleneck(x)
        factor = scale * (1.0 if isinstance(strength, Tensor) else strength)
        hidden = times(hidden, strength) if isinstance(strength, Tensor) else hidden
        if pictures:
            up = up.flatten(1).expand(len(output), -1, -1)
            sum_ = torch.baddbmm(output.flatten(2), up, hidden.flatten(2), alpha=factor)
        else:
            sum_ = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=factor)
        return sum_.view(output.shape)

    def delta(self, x: Tensor, strength: Strength = 1.0) -> Tensor:
        hidden, up, scale = self._bottleneck(x)
        hidden = times(hidden, strength * scale)
        return F.linear(hidden, up) if self.conv is None else F.conv2d(hidden, up)

    def _bottleneck(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """A(x) and B, with what dropout leaves of them, and what their product is still to be multiplied with."""
        down, up, scale = self._matrices(x.dtype)
        down, up = down.to(x.device, x.dtype), up.to(x.device, x.dtype)
        hidden = F.linear(x, down) if self.conv is None else F.conv2d(x, down, **self.conv)
        mask = self.mask
        if mask is None:
            return hidden, up, scale
        if mask.kept is not None:
            up = up * mask.kept.to(up.device, up.dtype).view(1, -1, *[1] * (up.ndim - 2))
        if mask.dropout > 0:
            hidden = hidden * kept_elements(mask.seed, mask.dropout, hidden)
        return hidden, up, scale

    def delta_weight(self) -> Tensor:
        return (self.up.flatten(1) @ self.down.flatten(1) * self.scale).view(self.shape)

    def factors(self) -> list[nn.Parameter]:
        return [self.down, self.up]

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        of_down, of_up = shares(self.scale / scale)
        self.down.mul_(of_down)
        self.up.mul_(of_up)
        self.scale = scale

    def delta_norm(self) -> Tensor:
        """||BA||^2 = sum of (B^T B) * (A A^T): two rank x rank matrices, however wide the layer is."""
        up, down = self.up.flatten(1), self.down.flatten(1)
        return ((up.t() @ up) * (down @ down.t())).sum().clamp_min(0).sqrt() * abs(self.scale)

    def row_norms(self, weight: Tensor) -> Tensor:
        """||w + d||^2 = ||w||^2 + 2 <w, d> + ||d||^2 for each row, without ever making D."""
        up, down = self.up.flatten(1), self.down.flatten(1)
        base = self.base_norm
        if base is None:
            base = torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=torch.float32)
        mixed = ((weight.flatten(1) @ down.t().to(weight.dtype)).float() * up).sum(1)
        own = (up @ (down @ down.t()) * up).sum(1)
        return (base.square() + 2 * self.scale * mixed + self.scale**2 * own).clamp_min(0).sqrt()

    @property
    def rank_count(self) -> int:
        return self.rank

    @property
    def lora_plus_parameters(self) -> list[nn.Parameter]:
        return [self.up]
