"""Flat parameters: an adapter's weights in one tensor, their gradients in another, so that one launch serves all of them.

A GPU is asked for work hundreds of times a step, and each asking costs microseconds whatever it is for. Converting every matrix
to the number format of the model, clipping, averaging and the optimizer's step then cost more time for the asking than for the
work. Here the layers' parameters are views of one float32 tensor. Where the model computes in another format, a *shadow* in it is
made of all of them at once as a step begins, with the scale of each LoRA in its down-matrix, and what autograd finds for it is
added to the one gradient as the step ends. Matrices that are alike lie side by side, so that those of layers that read the same
input are one matrix (``shared_input``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

ALIGNMENT = 8
"""Numbers; each matrix begins at a multiple, without which a GPU's units for products would not serve half precisions."""


Rates = Sequence[tuple[float, Sequence[nn.Parameter]]]


class Branch(Protocol):
    """What is asked of an adapter's layer (``AdapterLayer``)."""

    algorithm: ClassVar[str]
    rank: int
    scale: float
    shape: tuple[int, ...]

    @property
    def folded(self) -> Mapping[str, float]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def get_parameter(self, target: str, /) -> nn.Parameter: ...


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies."""

    layer: str
    part: str
    start: int
    shape: torch.Size
    scale: float
    """What the shadow's numbers are multiplied with."""

    @property
    def end(self) -> int:
        return self.start + self.shape.numel()

    def of(self, flat: Tensor) -> Tensor:
        """Its part of one of the flat tensors, in its own shape."""
        return flat[self.start : self.end].view(self.shape)


class Leaf:
    """Neighbours of a flat tensor as autograd sees them, and the place to which their gradient is added."""

    def __init__(self, source: Tensor, target: Tensor, start: int, shape: Sequence[int]):
        end = start + torch.Size(shape).numel()
        self.tensor = source[start:end].view(shape).detach().requires_grad_()
        self._target = target[start:end].view(shape)

    @property
    def found(self) -> tuple[Tensor, Tensor] | None:
        """(where the gradient goes, the gradient); None where there is none."""
        return None if self.tensor.grad is None else (self._target, self.tensor.grad)


class FlatParameters:
    """All parameters of ``branches``; those Parameters are views of ``weights`` from now on.

    ``rates`` has the parameters in the order in which an optimizer would get them, by their factor on the learning rate;
    ``slots``: numbers that are sent to other processes behind the gradient.
    """

    def __init__(self, branches: Mapping[str, Branch], rates: Rates, computes_in: torch.dtype, slots: int = 0):
        known = {id(p): (name, part) for name, branch in branches.items() for part, p in branch.named_parameters()}
        self.slots: dict[tuple[str, str], Slot] = {}
        self.groups: list[tuple[float, list[Slot]]] = []
        """(factor on the learning rate, its slots in the order of ``rates``)."""
        self.bounds: list[tuple[int, int]] = []
        """(begin, length) of each of ``groups``."""
        size = 0
        for rate, parameters in rates:
            begin = size
            for parameter in sorted(parameters, key=lambda p: _alike(branches[known[id(p)][0]], known[id(p)][1])):
                name, part = known[id(parameter)]
                self.slots[name, part] = Slot(name, part, size, parameter.shape, branches[name].folded.get(part, 1.0))
                size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
            self.bounds.append((begin, size - begin))
            self.groups.append((rate, [self.slots[known[id(p)]] for p in parameters]))
        device = next(p.device for _, parameters in rates for p in parameters)
        self.weights = torch.zeros(size, device=device)
        self.message = torch.zeros(size + slots, device=device)
        """The gradient, and behind it room for what goes with it to other processes."""
        self.gradient = self.message[:size]
        self.is_empty = True
        """Whether nothing was added to the gradient since it was zeroed."""
        self._own = {key: branches[key[0]].get_parameter(key[1]) for key in self.slots}
        with torch.no_grad():
            for key, parameter in self._own.items():
                slot = self.slots[key]
                slot.of(self.weights).copy_(parameter)
                parameter.data = slot.of(self.weights)
        self.parameters = [nn.Parameter(self.weights[a : a + n]) for a, n in self.bounds]
        """One for each of ``groups``; an optimizer that works number by number trains these."""
        for parameter, (a, n) in zip(self.parameters, self.bounds, strict=True):
            parameter.grad = self.gradient[a : a + n]
        self.is_live = False
        """Whether the shadow is that of the weights as they are, and what autograd finds for it will be collected."""
        scales = {slot.scale for slot in self.slots.values()}
        same = computes_in == torch.float32 and scales == {1.0}
        self._shadow = None if same else torch.zeros_like(self.weights, dtype=computes_in)
        self._stretches = list(_stretches(self.slots.values(), size))
        shadow = self._shadow
        self._leaves = {} if shadow is None else {k: Leaf(shadow, shadow, s.start, s.shape) for k, s in self.slots.items()}
        self._shared: dict[tuple[int, tuple[int, ...]], Leaf] = {}

    @property
    def computes_in(self) -> torch.dtype:
        return self.weights.dtype if self._shadow is None else self._shadow.dtype

    def tensors(self) -> list[Tensor]:
        """Those in which everything lies."""
        return [self.weights, self.gradient, *(() if self._shadow is None else (self._shadow,))]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """One of the flat tensors by the parameters' names in ``Adapter.state()``, as views."""
        return {f"{layer}.{part}": self.slots[layer, part].of(flat) for layer, part in self._own}

    def parts(self, whole: bool) -> list[tuple[list[nn.Parameter], float]]:
        """(what an optimizer trains, factor on the learning rate); ``whole``: as one Parameter for each factor."""
        if whole:
            return [([parameter], rate) for parameter, (rate, _) in zip(self.parameters, self.groups, strict=True)]
        return [([self._own[slot.layer, slot.part] for slot in slots], rate) for rate, slots in self.groups]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The layers' own Parameters have their gradients while this lasts, for an optimizer that looks at each by itself."""
        for key, parameter in self._own.items():
            parameter.grad = self.slots[key].of(self.gradient)
        try:
            yield
        finally:
            for parameter in self._own.values():
                parameter.grad = None

    # A step ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self) -> None:
        """The shadow becomes that of the weights as they are now; to be called before each batch."""
        self.drop()  # what a pass has left that came to no end
        if self._shadow is not None:
            for begin, end, scale in self._stretches:
                torch.mul(self.weights[begin:end], scale, out=self._shadow[begin:end])
        self.is_live = True

    def copies_of(self, layer: str) -> dict[str, Tensor]:
        """A layer's parameters, by name, as a step that has begun computes with them, scales folded in; none where these are the
        Parameters themselves."""
        return {part: leaf.tensor for (name, part), leaf in self._leaves.items() if name == layer}

    def shared_leaf(self, start: int, shape: tuple[int, ...]) -> Tensor:
        """Several parameters that lie side by side, as one matrix or one stack."""
        found = self._shared.get((start, shape))
        if found is None:
            source, target = (self.weights, self.gradient) if self._shadow is None else (self._shadow, self._shadow)
            found = self._shared[start, shape] = Leaf(source, target, start, shape)
        return found.tensor

    @torch.no_grad()
    def collect(self) -> None:
        """Adds what the backward pass found to the gradient."""
        if self._shadow is not None:
            self._shadow.zero_()  # its numbers have been used; from here on it holds their gradients
        _add(self._shared.values())
        _add(self._leaves.values())
        if self._shadow is not None:
            for begin, end, scale in self._stretches:
                self.gradient[begin:end].add_(self._shadow[begin:end], alpha=scale)
        found = [(self.slots[key].of(self.gradient), p.grad) for key, p in self._own.items() if p.grad is not None]
        if found:
            torch._foreach_add_([place for place, _ in found], [gradient for _, gradient in found])
        self.drop()
        self.is_empty = False

    def drop(self) -> None:
        """Forgets what a backward pass has found and nobody collected."""
        self.is_live = False
        for leaf in (*self._leaves.values(), *self._shared.values()):
            leaf.tensor.grad = None
        for parameter in self._own.values():
            parameter.grad = None

    def zero(self) -> None:
        """Begins a new gradient."""
        self.gradient.zero_()
        self.is_empty = True

    def kept(self) -> Tensor | None:
        """The gradient as it is, for ``restore``; None where it is zero."""
        return None if self.is_empty else self.gradient.clone()

    def restore(self, kept: Tensor | None) -> None:
        """The gradient as ``kept`` had it, and nothing of a backward pass that has failed."""
        self.drop()
        self.zero()
        if kept is not None:
            self.gradient.copy_(kept)
            self.is_empty = False


def _alike(branch: Branch, part: str) -> tuple[object, ...]:
    """Parameters of equal keys are of one shape and belong side by side; before them those that differ in as little as can be."""
    outputs, *inputs = branch.shape
    parts = [name for name, _ in branch.named_parameters()]
    return branch.algorithm, parts.index(part), len(inputs), branch.rank, branch.scale, tuple(inputs), outputs


def _stretches(slots: Iterable[Slot], size: int) -> Iterator[tuple[int, int, float]]:
    """(begin, end, scale) of neighbours with one scale, without gaps from 0 to ``size``."""
    firsts = [next(same) for _, same in groupby(sorted(slots, key=lambda s: s.start), key=lambda s: s.scale)]
    ends = [slot.start for slot in firsts[1:]] + [size]
    for slot, end in zip(firsts, ends, strict=True):
        yield slot.start, end, slot.scale


def _add(leaves: Iterable[Leaf]) -> None:
    found = [found for leaf in leaves if (found := leaf.found) is not None]
    if found:
        torch._foreach_add_([place for place, _ in found], [gradient for _, gradient in found])
