"""Layers of every kind with an adapter of every kind beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.network.adapter import Adapter
from torch import nn

KINDS = {
    "LoRA": NetworkConfig(4, 2.0, conv_rank=3, conv_alpha=1.0),
    "rs-LoRA": NetworkConfig(4, 2.0, rank_stabilised=True),
    "DoRA": NetworkConfig(4, 2.0, weight_decompose=True),
    "LoHa": NetworkConfig(3, 2.0, algorithm="LoHa"),
    "LoHa with DoRA": NetworkConfig(3, 2.0, algorithm="LoHa", weight_decompose=True),
    "LoKr": NetworkConfig(2, 3.0, algorithm="LoKr"),
    "LoKr, whole": NetworkConfig(64, 3.0, algorithm="LoKr", lokr_factor=4),
    "LoKr with DoRA": NetworkConfig(2, 3.0, algorithm="LoKr", weight_decompose=True),
}


def layers(seed: int = 0) -> dict[str, nn.Module]:
    """Linear with and without bias, a convolution with a stride, one of a single pixel."""
    torch.manual_seed(seed)
    made = {
        "mid.fc": nn.Linear(30, 42),
        "mid.plain": nn.Linear(42, 30, bias=False),
        "out.conv": nn.Conv2d(12, 30, 3, stride=2, padding=1),
        "out.pixel": nn.Conv2d(12, 20, 1),
    }
    for layer in made.values():
        layer.requires_grad_(False)
    return made


def inputs(seed: int = 1, batch: int = 3) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    shapes = {"mid.fc": (7, 30), "mid.plain": (7, 42), "out.conv": (12, 6, 6), "out.pixel": (12, 6, 6)}
    return {name: torch.randn(batch, *shape, generator=stream) for name, shape in shapes.items()}


def trained(where: dict[str, nn.Module], config: NetworkConfig, seed: int = 3) -> Adapter:
    """An adapter that has moved away from its start."""
    adapter = Adapter.fresh(where, config, seed)
    stream = torch.Generator().manual_seed(seed)
    for p in adapter.parameters():
        p.data += torch.randn(p.shape, generator=stream) * 0.3 * (p.data.std() if p.data.any() else 0.5)
    return adapter


def outputs(where: dict[str, nn.Module], adapter: Adapter | None = None, given: dict | None = None) -> dict[str, torch.Tensor]:
    """What every layer answers, with the adapter beside it."""
    given = given or inputs()
    if adapter is None:
        return {name: layer(given[name]) for name, layer in where.items()}
    with adapter.attached(where):
        return {name: where[name](given[name]) for name in adapter.branches}


def with_weight(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What ``layer`` would answer if this were its weight."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)
    return F.linear(x, weight, layer.bias)


def close(a: torch.Tensor, b: torch.Tensor, share: float = 1e-5) -> bool:
    return bool((a - b).norm() <= share * b.norm())


def names(prefix: str = "lora_unet_") -> dict[str, list[str]]:
    """As the host gives them: every dialect in which it finds a layer."""
    return {name: [prefix + name.replace(".", "_"), "diffusion_model." + name] for name in layers()}
