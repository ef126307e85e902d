"""An adapter on a model: beside the layers, never in their weights, and gone without a trace when it is taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config import NetworkConfig
from .lora import LoRALayer


class Adapter(nn.Module):
    """LoRA layers by the dotted name of the layer they sit beside."""

    def __init__(self, layers: Mapping[str, LoRALayer]):
        super().__init__()
        self.branches = dict(layers)
        self.modules_list = nn.ModuleList(self.branches.values())
        self.strength: float | Tensor = 1.0
        """A number, or one number a picture of the batch, (B,)."""

    @classmethod
    def fresh(cls, layers: Mapping[str, nn.Module], config: NetworkConfig, seed: int) -> Adapter:
        """A new adapter for ``layers``; equal seeds give equal weights."""
        generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        return cls({name: LoRALayer(layer, config.rank, config.scale, generator) for name, layer in layers.items()})

    @contextmanager
    def attached(self, layers: Mapping[str, nn.Module]) -> Iterator[Adapter]:
        """Adds every branch to its layer's output while the context lasts; on error and interrupt too it comes off."""
        handles = []
        try:
            for name, branch in self.branches.items():
                handles.append(layers[name].register_forward_hook(self._beside(branch)))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _beside(self, branch: LoRALayer) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
        def hook(_layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
            if isinstance(self.strength, float) and self.strength == 0.0:
                return None
            return output + branch(inputs[0], self.strength).to(output.dtype)

        return hook

    def state(self) -> dict[str, Tensor]:
        """Exact float32 weights by name, for going on later."""
        out = {}
        for name, branch in self.branches.items():
            out[f"{name}.down"] = branch.down.detach()
            out[f"{name}.up"] = branch.up.detach()
        return out

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``state()`` gave; shapes and names must be the same."""
        mine = self.state()
        if set(mine) != set(state) or any(mine[k].shape != state[k].shape for k in mine):
            raise ValueError("this state belongs to another model, rank or choice of targets")
        for name, tensor in mine.items():
            tensor.copy_(state[name])

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())
