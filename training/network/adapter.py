"""Adapter: LoRA layers beside a frozen model's layers, never in their weights, gone without a trace when detached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..config import NetworkConfig
from ..seeding import first_weights
from ..tensors.method_patch import patched
from . import fused_linear
from .adapter_layer import AdapterLayer, Strength
from .dropout import Dropout, Drops
from .lora import LoRALayer
from .lycoris import LoHaLayer, LoKrLayer
from .targets import LayerSettings, settings


class Adapter(nn.Module):
    """Branches by the dotted name of the layer they sit beside."""

    def __init__(self, layers: Mapping[str, AdapterLayer], dropout: Dropout | None = None, plus_ratio: float = 1.0):
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
        generator = first_weights(seed)
        wanted = settings(layers, config)
        branches = {name: build(layer, wanted[name], config, generator) for name, layer in layers.items()}
        return cls(branches, Dropout(config.dropout, config.rank_dropout, config.module_dropout), config.lora_plus_ratio)

    @contextmanager
    def attached(self, layers: Mapping[str, nn.Module]) -> Iterator[Adapter]:
        """Adds every branch to its layer's output while the context lasts; on error and interrupt too it comes off.

        Nothing is dropped until ``begin_step`` is called inside.
        """
        together = {layers[name]: b for name, b in self.branches.items() if b.fuses and fused_linear.known(layers[name])}
        handles = []
        self.end_step()
        try:
            for name, branch in self.branches.items():
                if layers[name] not in together:
                    handles.append(layers[name].register_forward_hook(self._hook(branch)))
            with patched(together, "forward", lambda layer, usual: self._fused(together[layer], layer, usual)):
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self.end_step()

    def _hook(self, branch: AdapterLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            strength = self.strength
            if not isinstance(strength, Tensor) and strength == 0:
                return None
            return branch.add_to(layer, inputs[0], output, strength)

        return hook

    def _fused(self, branch: AdapterLayer, layer: nn.Module, usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
        beside, home = self._hook(branch), next(branch.parameters()).device

        def forward(x: Tensor, *more: object, **named: object) -> Tensor:
            whole = branch.mask is None and isinstance(self.strength, float) and self.strength == 1.0
            if whole and x.device == home and torch.is_grad_enabled() and not more and not named and fused_linear.plain(layer, x):
                return branch.fused_forward(layer, x)
            output = usual(x, *more, **named)
            added = beside(layer, (x,), output)
            return output if added is None else added

        return forward

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model predicts without the adapter while this lasts, although it stays attached."""
        strength, self.strength = self.strength, 0.0
        try:
            yield
        finally:
            self.strength = strength

    def begin_step(self, seed: int, step: int) -> None:
        """Decides what dropout leaves out of the forward passes to come; depends on the arguments alone."""
        self.drop(self.drops(seed, step))

    def drops(self, seed: int, step: int) -> Drops | None:
        """What dropout leaves out of a step, which depends on the arguments alone; None if that is nothing."""
        if not self.dropout:
            return None
        return self.dropout.draw(
            [branch.rank_count for branch in self.branches.values()], seed, step, next(self.parameters()).device
        )

    def drop(self, drops: Drops | None) -> None:
        """From here on forward passes do without what ``drops`` leaves out."""
        self.end_step()
        if drops is not None:
            sizes = [branch.rank_count for branch in self.branches.values()]
            for branch, mask in zip(self.branches.values(), drops.masks(sizes), strict=True):
                branch.mask = mask

    def end_step(self) -> None:
        """From here on nothing is dropped: for samples and for judging."""
        for branch in self.branches.values():
            branch.mask = None
            branch.clear_cache()

    def sizes(self) -> list[tuple[int, float]]:
        """(rank, alpha) of every layer: D is scaled by alpha / rank."""
        return [(branch.rank, branch.scale * branch.rank) for branch in self.branches.values()]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """``{"params": [...], "rate": factor}`` for an optimizer; the factor holds the layers' own rates and LoRA+'s ratio."""
        groups: dict[float, list[nn.Parameter]] = {}
        for branch in self.branches.values():
            raised = {id(p) for p in branch.lora_plus_parameters}
            for parameter in branch.parameters():
                rate = branch.rate * (self.plus_ratio if id(parameter) in raised else 1.0)
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


def build(layer: nn.Module, wanted: LayerSettings, config: NetworkConfig, generator: torch.Generator) -> AdapterLayer:
    """A branch that leaves ``layer``'s output as it is until it is trained."""
    branch: AdapterLayer
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
