"""LoHa and LoKr (LyCORIS): D as a Hadamard or a Kronecker product of small matrices.

The arithmetic is that of the package ``lycoris-lora``, which is optional; its layers, which replace the model's own, are not
used. LoHa: D = scale * (w1_a w1_b) * (w2_a w2_b) elementwise (Hyeon-Woo et al. 2022, arXiv 2108.06098). LoKr: D = scale *
w1 (x) (w2_a w2_b) (Yeh et al. 2024, arXiv 2309.14859). With cores ``t1``, ``t2`` a factor of a LoHa on a convolution is the
Tucker product of core, a and b; such adapters are read from files, not made anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AtelierError
from .adapter_layer import AdapterLayer, Strength, times
from .base_layer import weight_shape

# Plain torch operations on every machine: compiled kernels would differ between machines and may need a compiler.
BACKEND = "torch"


def lycoris(module: str) -> Any:
    """``lycoris.functional.<module>``, or an AtelierError that says how to get it."""
    import importlib

    try:
        return importlib.import_module(f"lycoris.functional.{module}")
    except ImportError as error:
        raise AtelierError(
            f"algorithm: LoHa and LoKr need the package lycoris-lora, which cannot be loaded ({error}). "
            "Install it with 'pip install lycoris-lora', or choose LoRA."
        ) from error


class ProductLayer(AdapterLayer):
    """A branch whose parameters are named as in LyCORIS files, without the prefix."""

    names: tuple[str, ...]

    def __init__(self, layer: nn.Module, rank: int, scale: float, tensors: Mapping[str, Tensor]):
        super().__init__(layer, rank, scale)
        for name in self.names:
            self.register_parameter(name, nn.Parameter(tensors[name].float()) if name in tensors else None)

    def factors(self) -> list[nn.Parameter]:
        return [p for name in self.names if (p := getattr(self, name)) is not None]

    def made_shape(self) -> tuple[int, int]:
        """(rows, columns) of D as the parameters' sizes have it; for checking a file."""
        raise NotImplementedError

    def _cast(self, dtype: torch.dtype, device: torch.device | None = None) -> list[Any]:
        """The parameters in the order of ``names``, None for absent ones; ``device`` None: where they lie."""
        return [None if getattr(self, name) is None else self.used(name, dtype)[0].to(device, dtype) for name in self.names]

    def _drop_rows(self, out: Tensor) -> Tensor:
        if self.mask is None or self.mask.kept is None:
            return out
        return out * self.channels(self.mask.kept.to(out.device, out.dtype), out)

    @property
    def rank_count(self) -> int:
        return self.shape[0]


class LoHaLayer(ProductLayer):
    """``w?_a`` (out, rank), ``w?_b`` (rank, in * kh * kw); with cores (rank, out), (rank, in) and ``t?`` (rank, rank, kh, kw)."""

    algorithm = "LoHa"
    names = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    gamma: Tensor

    def __init__(self, layer: nn.Module, rank: int, scale: float, tensors: Mapping[str, Tensor]):
        super().__init__(layer, rank, scale, tensors)
        self._made = lycoris("loha").diff_weight  # here, since a compiler could not import it
        # lycoris saves the scale for backward, so it must be a tensor; made once, since each one would cross to the device.
        self.register_buffer("gamma", torch.tensor(scale), persistent=False)

    @classmethod
    def fresh(cls, layer: nn.Module, rank: int, scale: float, generator: torch.Generator) -> LoHaLayer:
        """w1_b, w2_b ~ N(0, 1), w1_a ~ N(0, 0.1), w2_a = 0."""
        out = cls(layer, rank, scale, {})
        rows, columns = out.shape[0], math.prod(out.shape[1:])
        out.w1_a = nn.Parameter(torch.randn(rows, rank, generator=generator) * 0.1)
        out.w1_b = nn.Parameter(torch.randn(rank, columns, generator=generator))
        out.w2_a = nn.Parameter(torch.zeros(rows, rank))
        out.w2_b = nn.Parameter(torch.randn(rank, columns, generator=generator))
        return out

    def made_shape(self) -> tuple[int, int]:
        w1_a, w1_b, w2_a, w2_b, t1, t2 = self._cast(torch.float32)
        sides = []
        for a, b, core in ((w1_a, w1_b, t1), (w2_a, w2_b, t2)):
            sides.append((a.shape[0], b.shape[1]) if core is None else (a.shape[1], b.shape[1] * core[0, 0].numel()))
        return sides[0] if sides[0] == sides[1] else (0, 0)

    def delta(self, x: Tensor, strength: Strength = 1.0) -> Tensor:
        weight = self._delta(x.dtype, x.device)
        return times(self._drop_rows(F.linear(x, weight) if self.conv is None else F.conv2d(x, weight, **self.conv)), strength)

    def delta_weight(self) -> Tensor:
        return self._delta(torch.float32)

    def rescale(self, scale: float) -> None:
        super().rescale(scale)
        self.gamma.fill_(scale)

    def _delta(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        w1_a, w1_b, w2_a, w2_b, t1, t2 = self._cast(dtype, device)
        gamma = self.gamma.to(w1_a.device)
        made: Tensor = self._made(w1_b, w1_a, w2_b, w2_a, t1, t2, gamma=gamma, backend=BACKEND)
        return made.reshape(self.shape)


class LoKrLayer(ProductLayer):
    """``w1`` (l, m) or ``w1_a`` (l, rank), ``w1_b`` (rank, m); ``w2`` (k, n[, kh, kw]) or ``w2_a`` (k, rank), ``w2_b``
    (rank, n[, kh, kw]); l * k = out, m * n = in.

    When neither half is decomposed there is no rank to divide by, and the scale is 1.
    """

    algorithm = "LoKr"
    names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")

    def __init__(self, layer: nn.Module, rank: int, scale: float, tensors: Mapping[str, Tensor]):
        super().__init__(layer, rank, scale if "w1_a" in tensors or "w2_a" in tensors else 1.0, tensors)
        formulas = lycoris("lokr")  # here, since a compiler could not import it
        self._made, self._beside = formulas.diff_weight, formulas.bypass_forward_diff

    @classmethod
    def fresh(cls, layer: nn.Module, rank: int, scale: float, generator: torch.Generator, factor: int = -1) -> LoKrLayer:
        """w1 and w2_a kaiming-uniform(a = sqrt 5), w2_b (or the whole w2, where ``rank`` is not below half its side) zero."""
        outputs, inputs, *kernel = weight_shape(layer)
        split = lycoris("general").factorization
        (l, k), (m, n) = split(outputs, factor), split(inputs, factor)  # noqa: E741 - the paper's letters

        def kaiming(*shape: int) -> Tensor:
            return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(math.prod(shape[1:]))

        tensors = {"w1": kaiming(l, m)}
        if rank >= max(k, n) / 2:
            tensors["w2"] = torch.zeros(k, n, *kernel)
        else:
            tensors |= {"w2_a": kaiming(k, rank), "w2_b": torch.zeros(rank, n, *kernel)}
        return cls(layer, rank, scale, tensors)

    def rescale(self, scale: float) -> None:
        if self.w1 is None or self.w2 is None:
            super().rescale(scale)

    def delta(self, x: Tensor, strength: Strength = 1.0) -> Tensor:
        """Without making D: x is folded to (m, n), and w2 and w1 work on their own sides of it."""
        tensors = self._scaled(x.dtype, x.device)
        decomposed = tensors[2] if tensors[2] is not None else tensors[5]
        # lycoris divides by the rank that it finds in the b's; the scale is in the tensors already.
        gamma = 1.0 if decomposed is None else decomposed.shape[0]
        out = self._beside(x, None, *tensors, gamma=gamma, extra_args=self.conv or {}, backend=BACKEND)
        return times(self._drop_rows(out), strength)

    def delta_weight(self) -> Tensor:
        tensors = self._scaled(torch.float32)
        decomposed = tensors[1] if tensors[1] is not None else tensors[4]
        gamma = 1.0 if decomposed is None else decomposed.shape[1]  # here it divides by what it finds in the a's
        made: Tensor = self._made(*tensors, gamma=gamma, backend=BACKEND)
        return made.reshape(self.shape)

    def _scaled(self, dtype: torch.dtype, device: torch.device | None = None) -> list[Any]:
        """The parameters with the scale in the smallest of them, and lycoris' place for a core, which stays empty."""
        tensors = self._cast(dtype, device)
        first = 0 if tensors[0] is not None else 1
        tensors[first] = tensors[first] * self.scale
        return [*tensors, None]

    def made_shape(self) -> tuple[int, int]:
        w1, w1_a, w1_b, w2, w2_a, w2_b = self._cast(torch.float32)
        rows, columns = w1.shape if w1 is not None else (w1_a.shape[0], w1_b.shape[1])
        if w2 is not None:
            return rows * w2.shape[0], columns * w2[0].numel()
        return rows * w2_a.shape[0], columns * w2_b[0].numel()

    def delta_norm(self) -> Tensor:
        """||w1 (x) w2|| = ||w1|| ||w2||."""
        w1, w1_a, w1_b, w2, w2_a, w2_b = self._cast(torch.float32)
        w1 = w1_a @ w1_b if w1 is None else w1
        w2 = w2_a @ w2_b.flatten(1) if w2 is None else w2
        norm: Tensor = w1.norm() * w2.norm() * abs(self.scale)
        return norm
