"""An adapter on a model: beside the layers, never in their weights, and gone without a trace when it is taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..config import NetworkConfig
from ..stand_in import replaced
from . import fused
from .branch import Branch, Strength
from .build import build
from .dropout import Dropout
from .targets import settings


class Adapter(nn.Module):
    """Branches by the dotted name of the layer they sit beside."""

    def __init__(self, layers: Mapping[str, Branch], dropout: Dropout | None = None, plus_ratio: float = 1.0):
        super().__init__()
        self.branches = dict(layers)
        self.modules_list = nn.ModuleList(self.branches.values())
        self.dropout = dropout or Dropout()
        self.plus_ratio = plus_ratio
        """LoRA+: factor on the learning rate of the up-matrices."""
        self.strength: Strength = 1.0
        """A number, or one number a picture of the batch, (B,)."""

    @classmethod
    def fresh(cls, layers: Mapping[str, nn.Module], config: NetworkConfig, seed: int) -> Adapter:
        """A new adapter for ``layers``, with which the model is what it was; equal seeds give equal weights."""
        generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        wanted = settings(layers, config)
        branches = {name: build(layer, wanted[name], config, generator) for name, layer in layers.items()}
        return cls(branches, Dropout(config.dropout, config.rank_dropout, config.module_dropout), config.lora_plus_ratio)

    @contextmanager
    def attached(self, layers: Mapping[str, nn.Module]) -> Iterator[Adapter]:
        """Adds every branch to its layer's output while the context lasts; on error and interrupt too it comes off.

        Nothing is dropped until ``begin_step`` is called inside.
        """
        together = {layers[name]: b for name, b in self.branches.items() if b.fuses and fused.known(layers[name])}
        handles = []
        self.end_step()
        try:
            for name, branch in self.branches.items():
                if layers[name] not in together:
                    handles.append(layers[name].register_forward_hook(self._beside(branch)))
            with replaced(together, "forward", lambda layer, usual: self._together(together[layer], layer, usual)):
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self.end_step()

    def _beside(self, branch: Branch) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
        def hook(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
            strength = self.strength
            if (branch.lot is not None and branch.lot.skipped) or (not isinstance(strength, Tensor) and strength == 0):
                return None
            return branch.beside(layer, inputs[0], output, strength)

        return hook

    def _together(self, branch: Branch, layer: nn.Module, usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
        beside, home = self._beside(branch), next(branch.parameters()).device

        def forward(x: Tensor, *more: Any, **named: Any) -> Tensor:
            whole = branch.lot is None and isinstance(self.strength, float) and self.strength == 1.0
            if whole and x.device == home and torch.is_grad_enabled() and not more and not named and fused.plain(layer, x):
                return branch.together(layer, x)
            output = usual(x, *more, **named)
            added = beside(layer, (x,), output)
            return output if added is None else added

        return forward

    def begin_step(self, seed: int, step: int) -> None:
        """Decides what dropout leaves out of the forward passes to come; depends on the arguments alone."""
        self.end_step()
        if self.dropout:
            branches = list(self.branches.values())
            device = next(self.parameters()).device
            for branch, lot in zip(branches, self.dropout.draw(branches, seed, step, device), strict=True):
                branch.lot = lot

    def end_step(self) -> None:
        """From here on nothing is dropped: for samples and for judging."""
        for branch in self.branches.values():
            branch.lot = None
            branch.forget()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """``{"params": [...], "rate": factor}`` for an optimizer; the factor holds the layers' own rates and LoRA+'s ratio."""
        groups: dict[float, list[nn.Parameter]] = {}
        for branch in self.branches.values():
            gaining = {id(p) for p in branch.gaining}
            for parameter in branch.parameters():
                rate = branch.rate * (self.plus_ratio if id(parameter) in gaining else 1.0)
                groups.setdefault(rate, []).append(parameter)
        return [{"params": parameters, "rate": rate} for rate, parameters in groups.items()]

    @torch.no_grad()
    def limit_norms(self, limit: float) -> None:
        """Shrinks every D whose Frobenius norm is above ``limit`` to it, all factors by the same ratio; no device sync."""
        for branch in self.branches.values():
            ratio = limit / branch.delta_norm().clamp_min(limit)
            factors: list[Tensor] = [*branch.factors()]
            torch._foreach_mul_(factors, ratio ** (1 / len(factors)))

    def state(self) -> dict[str, Tensor]:
        """Exact float32 weights by name, for going on later."""
        return {
            f"{name}.{part}": parameter.detach()
            for name, branch in self.branches.items()
            for part, parameter in branch.named_parameters()
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``state()`` gave; shapes and names must be the same."""
        mine = self.state()
        if set(mine) != set(state) or any(mine[k].shape != state[k].shape for k in mine):
            raise ValueError("this state belongs to another model, rank or choice of targets")
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.end_step()

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())
