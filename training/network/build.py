"""A new branch for a layer, of the algorithm and with the settings that are asked for."""

from __future__ import annotations

import torch
from torch import nn

from ..config import NetworkConfig
from .branch import Branch
from .lora import LoRALayer
from .products import LoHaLayer, LoKrLayer
from .targets import LayerSettings


def build(layer: nn.Module, wanted: LayerSettings, config: NetworkConfig, generator: torch.Generator) -> Branch:
    """A branch that leaves ``layer``'s output as it is until it is trained."""
    branch: Branch
    if config.algorithm == "LoHa":
        branch = LoHaLayer.fresh(layer, wanted.rank, wanted.scale, generator)
    elif config.algorithm == "LoKr":
        branch = LoKrLayer.fresh(layer, wanted.rank, wanted.scale, generator, config.lokr_factor)
    else:
        branch = LoRALayer(layer, wanted.rank, wanted.scale, generator)
    branch.rate = wanted.rate
    if config.weight_decompose:
        branch.decompose(layer)
    return branch
