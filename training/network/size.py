"""Size of an adapter before it exists: shapes of its parameters, and bytes of its file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..config import NetworkConfig
from .base_layer import weight_shape
from .targets import settings


def adapter_bytes(layers: Mapping[str, nn.Module], config: NetworkConfig, dtype: torch.dtype) -> int:
    """The numbers in the LoRA file for these layers; its header with names and metadata comes on top.

    Only the layers' kinds and shapes count, so they may lie on the meta device.
    """
    size = dtype.itemsize
    total = 0
    for name, wanted in settings(layers, config).items():
        shape = weight_shape(layers[name])
        exact = torch.tensor(float(wanted.rank), dtype=dtype).item() == wanted.rank
        numbers = sum(math.prod(matrix) for matrix in _shapes(shape, wanted.rank, config))
        total += size * numbers + (size if exact else 4)
        total += 4 * shape[0] if config.weight_decompose else 0
    return total


def adapter_shapes(layers: Mapping[str, nn.Module], config: NetworkConfig) -> list[tuple[int, ...]]:
    """Shapes of everything that will be trained beside these layers."""
    out: list[tuple[int, ...]] = []
    for name, wanted in settings(layers, config).items():
        shape = weight_shape(layers[name])
        out += _shapes(shape, wanted.rank, config)
        out += [(shape[0],)] if config.weight_decompose else []
    return out


def _shapes(shape: Sequence[int], rank: int, config: NetworkConfig) -> list[tuple[int, int]]:
    """The trained matrices of one branch, without magnitudes."""
    outputs, inputs = shape[0], math.prod(shape[1:])
    if config.algorithm != "LoKr":
        return [(rank, inputs), (outputs, rank)] * (2 if config.algorithm == "LoHa" else 1)
    from ..network.lycoris import lycoris

    split = lycoris("general").factorization
    (l, k), (m, n) = split(outputs, config.lokr_factor), split(shape[1], config.lokr_factor)  # noqa: E741 - the paper's letters
    kernel = math.prod(shape[2:])
    return [(l, m), *([(k, n * kernel)] if rank >= max(k, n) / 2 else [(k, rank), (rank, n * kernel)])]
