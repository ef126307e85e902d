"""Adapter layer, base class of all algorithms: y = f(x) + strength * delta(x), with f the frozen layer.

Without weight decomposition delta is a product of small matrices. With it (DoRA; Liu et al. 2024, arXiv 2402.09353) the weight
is W' = m * (W + D) / ||W + D||, row by row, m being trained and the norm held constant in the backward pass (section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base_layer import bias_of, is_conv, weight_of, weight_shape
from .flat import FlatParameters

EPS = torch.finfo(torch.float32).eps
Strength = float | Tensor


@dataclass(frozen=True)
class DropoutMask:
    """What dropout has decided for one branch and one step; tensors are on the adapter's device."""

    seed: Tensor
    """(2,) whole numbers below 2^32 that decide the elementwise dropout, so that a recomputed pass drops the same elements."""
    dropout: float
    """Share of the bottleneck's elements that is dropped."""
    kept: Tensor | None
    """(AdapterLayer.rank_count,): 0 where a rank (or a row) or the whole branch is dropped, 1 / (1 - share of ranks) elsewhere;
    None drops none."""
    stays: Tensor | None
    """Module dropout: 0 if the branch is skipped in this step, else 1; None where none ever is. A factor and not a branch in the
    code, so that what is computed is the same in every step."""


class AdapterLayer(nn.Module):
    """The trained part beside one Linear or Conv2d; its parameters are float32 whatever the model computes in.

    They may lie on another device than the layer (a text encoder on the CPU beside a model on a GPU: an optimizer wants all on
    one) and come to its inputs in every pass.
    """

    algorithm: ClassVar[str]
    magnitude: nn.Parameter | None
    """m of DoRA, (out,); None without weight decomposition."""
    base_norm: Tensor | None
    """||W|| of every row of the frozen weight, (out,); only with a magnitude."""

    def __init__(self, layer: nn.Module, rank: int, scale: float):
        super().__init__()
        self.rank, self.scale = rank, scale
        self.rate = 1.0
        """Factor on the learning rate."""
        self.dropout: float | None = None
        """Its own share of elements that a step does without; None: the adapter's."""
        self.shape = weight_shape(layer)
        source: Any = layer
        self.conv = {k: getattr(source, k) for k in ("stride", "padding", "dilation")} if is_conv(layer) else None
        self.mask: DropoutMask | None = None
        """Set for a training step; None while the adapter is only used."""
        self._flat: FlatParameters | None = None
        self._step_copies: dict[str, Tensor] = {}
        """What a step computes with in place of the parameters of these names; tensors that stay."""
        self.register_parameter("magnitude", None)
        self.register_buffer("base_norm", None, persistent=False)
        self._norm: tuple[tuple[int, ...], Tensor] | None = None

    def delta(self, x: Tensor, strength: Strength = 1.0) -> Tensor:
        """strength * D(x), scale included, in ``x``'s number format; not yet divided by any norm."""
        raise NotImplementedError

    @property
    def folded(self) -> Mapping[str, float]:
        """What a step's copies of some parameters are multiplied with, by their names."""
        return {}

    def lie_in(self, flat: FlatParameters, name: str) -> None:
        """The parameters lie in ``flat``, under ``name``."""
        self._flat, self._step_copies = flat, flat.copies_of(name)

    def used(self, part: str, dtype: torch.dtype) -> tuple[Tensor, bool]:
        """A parameter for a pass in ``dtype``, and whether it is the step's copy, which has what is ``folded`` into it."""
        # A compiler asks for the same names in every layer, so that one piece of code serves all that are alike.
        if self._step_copies and self._flat is not None and self._flat.is_live and torch.is_grad_enabled():
            copy = self._step_copies[part]
            if copy.dtype == dtype:
                return copy, True
        return self.get_parameter(part), False

    @property
    def fuses(self) -> bool:
        """Whether ``together`` can take the place of the layer and ``beside``."""
        return False

    def fused_forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """f(x) + D(x) in one, for a layer of which ``fused.known`` and ``fused.plain`` hold."""
        raise NotImplementedError

    def delta_weight(self) -> Tensor:
        """D as a matrix in ``shape``, scale included, float32."""
        raise NotImplementedError

    def factors(self) -> list[nn.Parameter]:
        """The parameters whose product D is: multiplying each by c multiplies D by c to the power of their number."""
        raise NotImplementedError

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Sets the scale, and the factors such that D stays what it is."""
        self.factors()[0].mul_(self.scale / scale)
        self.scale = scale

    def delta_norm(self) -> Tensor:
        """Frobenius norm of D, scale included; no dimensions."""
        norm: Tensor = self.delta_weight().norm()
        return norm

    def row_norms(self, weight: Tensor) -> Tensor:
        """||W + D|| of every row, (out,), float32, for the frozen ``weight`` W."""
        norms: Tensor = (weight.float() + self.delta_weight()).flatten(1).norm(dim=1)
        return norms

    @property
    def rank_count(self) -> int:
        """How many ranks (or rows of D) rank dropout chooses from."""
        raise NotImplementedError

    @property
    def lora_plus_parameters(self) -> list[nn.Parameter]:
        """The parameters that LoRA+ (Hayou et al. 2024, arXiv 2402.12354) trains faster."""
        return []

    @torch.no_grad()
    def decompose(self, layer: nn.Module, stored: Tensor | None = None) -> None:
        """Splits magnitude from direction; afterwards the output is what it was, or what a file's ``stored`` scale makes of it.

        ``stored`` is the ``dora_scale`` of a file as ComfyUI applies it: W' = stored * (W + D) / ||W||.
        """
        source: Any = layer
        device: torch.device = source.weight.device  # a branch is small, the weight is not
        self.to(device)
        with torch.inference_mode(False), torch.no_grad():  # leaving inference mode switches gradients on
            weight = weight_of(layer, device)
            base = torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=torch.float32)
            self.base_norm = base
            norm = self.row_norms(weight)
            if stored is not None:
                norm = stored.flatten().to(device, torch.float32) * norm / (base + EPS)
            self.magnitude = nn.Parameter(norm.clone())
        self.clear_cache()

    @torch.no_grad()
    def stored_magnitude(self, layer: nn.Module) -> Tensor:
        """``dora_scale`` for a file, (out, 1) or (out, 1, 1, 1).

        ComfyUI divides by ||W||, not by ||W + D|| as the paper does, so the quotient of both is part of the number.
        """
        assert self.magnitude is not None and self.base_norm is not None
        self.clear_cache()
        stored = self.magnitude * (self.base_norm + EPS) / self.current_norm(layer)
        return stored.view(-1, *[1] * (len(self.shape) - 1))

    def clear_cache(self) -> None:
        """Lets go of what was computed from parameters that may have changed since."""
        self._norm = None

    def current_norm(self, layer: nn.Module) -> Tensor:
        """||W + D|| now, (out,), constant for autograd.

        While pictures are sampled it is computed once. A pass with gradients announces that the parameters will change, so
        nothing is kept then: fused optimizers change them without raising their version.
        """
        if torch.is_grad_enabled():
            self._norm = None
            with torch.no_grad():
                return self._measured_norm(layer)
        version = tuple(p._version for p in self.factors())
        if self._norm is not None and self._norm[0] == version:
            return self._norm[1]
        # Never an inference tensor, since autograd may have to keep it.
        with torch.inference_mode(False), torch.no_grad():
            norm = self._measured_norm(layer)
        self._norm = version, norm
        return norm

    def _measured_norm(self, layer: nn.Module) -> Tensor:
        return self.row_norms(weight_of(layer, self.factors()[0].device)).clamp_min(EPS)

    def add_to(self, layer: nn.Module, x: Tensor, output: Tensor, strength: Strength) -> Tensor:
        """``output`` = f(x) with the branch added. ``strength`` is a number or one number a picture, (B,).

        Weight decomposition is interpolated as ComfyUI does: W + strength * (W' - W).
        """
        if self.magnitude is None:
            return output + self.delta(x, strength).to(output.dtype)
        gain = self.channels(self.magnitude / self.current_norm(layer), output)
        bias = bias_of(layer, output)
        product = output if bias is None else output - self.channels(bias, output)
        delta = product * (gain - 1).to(output.dtype) + self.delta(x).to(output.dtype) * gain.to(output.dtype)
        if self.mask is not None and self.mask.stays is not None:
            delta = delta * self.mask.stays.to(delta.device, delta.dtype)
        return output + times(delta, strength)

    def channels(self, values: Tensor, like: Tensor) -> Tensor:
        """(out,) -> a view that multiplies the layer's output."""
        values = values.to(like.device)
        return values.view(1, -1, 1, 1) if self.conv is not None and like.ndim == 4 else values


def times(out: Tensor, strength: Strength) -> Tensor:
    """``out`` times a number or times one number a picture."""
    if isinstance(strength, Tensor):
        return out * fit_rows(strength, out)
    return out if strength == 1.0 else out * strength


def fit_rows(strength: Tensor, out: Tensor) -> Tensor:
    """Stretch one strength a picture to the rows of a layer that folds tokens or chunks into its first dimension."""
    rows = out.shape[0]
    if rows % strength.shape[0] != 0:
        raise ValueError(f"{strength.shape[0]} strengths do not fit a layer with {rows} rows")
    strength = strength.repeat_interleave(rows // strength.shape[0])
    return strength.to(out.dtype).view(-1, *[1] * (out.ndim - 1))
