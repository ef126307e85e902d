"""Adapter: LoRA layers beside a frozen model's layers, never in their weights, gone without a trace when detached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..config import NetworkConfig
from ..seeding import first_weights
from ..tensors.method_patch import patched
from . import fused_linear
from .adapter_layer import AdapterLayer, Strength
from .dropout import Dropout, Drops
from .flat import FlatParameters
from .lora import LoRALayer
from .lycoris import LoHaLayer, LoKrLayer
from .norm_limit import limit_alike
from .shared_input import Listener, SharedAnswers, units
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
        self.flat: FlatParameters | None = None
        """Where all parameters lie while they are trained."""
        self._listener: Listener | None = None
        self._heard: Listener | None = None
        self._together: SharedAnswers | None = None

    @classmethod
    def fresh(cls, layers: Mapping[str, nn.Module], config: NetworkConfig, seed: int) -> Adapter:
        """A new adapter for ``layers``, with which the model is what it was; equal seeds give equal weights."""
        generator = first_weights(seed)
        wanted = settings(layers, config)
        branches = {name: build(layer, wanted[name], config, generator) for name, layer in layers.items()}
        return cls(branches, Dropout(config.dropout, config.rank_dropout, config.module_dropout), config.lora_plus_ratio)

    def flatten(self, computes_in: torch.dtype, slots: int = 0) -> FlatParameters:
        """All parameters, on the device where they are now, in one tensor; ``computes_in``: the model's number format.

        ``slots``: as in ``FlatParameters``.
        """
        groups = [(group["rate"], group["params"]) for group in self.parameter_groups()]
        self.flat = FlatParameters(self.branches, groups, computes_in, slots)
        for name, branch in self.branches.items():
            branch.lie_in(self.flat, name)
        return self.flat

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears, in a pass of the network while this lasts, which layers read one tensor."""
        listener = Listener()
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None
        self._heard = listener

    @contextmanager
    def attached(self, layers: Mapping[str, nn.Module], across_blocks: bool = False) -> Iterator[Adapter]:
        """Adds every branch to its layer's output while the context lasts; on error and interrupt too it comes off.

        Nothing is dropped until ``begin_step`` is called inside. ``across_blocks``: layers of different blocks that read one
        tensor may be computed at once, since no block's weights come and go, and none is computed twice.
        """
        fused = {name: layers[name] for name, b in self.branches.items() if b.fuses and fused_linear.known(layers[name])}
        handles = []
        self.end_step()
        if self.flat is not None and self._heard is not None:
            found = units(self.flat, {name: self.branches[name] for name in fused}, layers, self._heard.readers(across_blocks))
            self._together = SharedAnswers(self.flat, found)
        try:
            for name, branch in self.branches.items():
                if name not in fused:
                    handles.append(layers[name].register_forward_hook(self._hook(branch)))
            names = {layer: name for name, layer in fused.items()}
            with patched(names, "forward", lambda layer, usual: self._fused(names[layer], layer, usual)):
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self.end_step()
            self._together = None

    def _hook(self, branch: AdapterLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            strength = self.strength
            if not isinstance(strength, Tensor) and strength == 0:
                return None
            return branch.add_to(layer, inputs[0], output, strength)

        return hook

    def _fused(self, name: str, layer: nn.Module, usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
        branch = self.branches[name]
        beside, home = self._hook(branch), next(branch.parameters()).device

        def forward(x: Tensor, *more: object, **named: object) -> Tensor:
            whole = branch.mask is None and isinstance(self.strength, float) and self.strength == 1.0
            if whole and x.device == home and torch.is_grad_enabled() and not more and not named and fused_linear.plain(layer, x):
                if self._listener is not None:
                    self._listener.note(name, x)
                if self._together is not None and not torch.compiler.is_compiling():
                    answer = self._together.answer(name, x, fused_linear.plain)
                    if answer is not None:
                        return answer
                return branch.fused_forward(layer, x)
            output = usual(x, *more, **named)
            added = beside(layer, (x,), output)
            return output if added is None else added

        return forward

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """The model predicts with the adapter at this strength while this lasts, also where a backward pass computes anew."""
        before, self.strength = self.strength, strength
        try:
            yield
        finally:
            self.strength = before

    def disabled(self) -> AbstractContextManager[None]:
        """The model predicts without the adapter while this lasts, although it stays attached."""
        return self.at(0.0)

    def begin_step(self, seed: int, step: int) -> None:
        """Decides what dropout leaves out of the forward passes to come; depends on the arguments alone."""
        self.drop(self.drops(seed, step))

    def drops(self, seed: int, step: int) -> Drops | None:
        """What dropout leaves out of a step, which depends on the arguments alone; None if that is nothing."""
        branches = self.branches.values()
        shares = [self.dropout.elements if branch.dropout is None else branch.dropout for branch in branches]
        if not self.dropout and not any(shares):
            return None
        return self.dropout.draw([branch.rank_count for branch in branches], seed, step, next(self.parameters()).device, shares)

    def drop(self, drops: Drops | None) -> None:
        """From here on forward passes do without what ``drops`` leaves out."""
        self.end_step()
        if drops is not None:
            sizes = [branch.rank_count for branch in self.branches.values()]
            for branch, mask in zip(self.branches.values(), drops.masks(sizes), strict=True):
                branch.mask = mask

    def end_step(self) -> None:
        """From here on nothing is dropped: for samples and for judging."""
        if self._together is not None:
            self._together.forget()
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
        alike = limit_alike(self.flat, self.branches, limit) if self.flat is not None else frozenset[str]()
        for name, branch in self.branches.items():
            if name in alike:
                continue
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

    def fixed(self) -> list[Tensor]:
        """What stays in its place whatever a pass does with it."""
        return [*self.parameters(), *(self.flat.tensors() if self.flat is not None else ())]

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
