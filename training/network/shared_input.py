"""Shared inputs: layers that read one tensor (query, key and value; keys and values of all blocks for the text) as one.

Their LoRAs' down-matrices are then one product, those of the up-matrices that are of one size another, and the gradients of what
they read are added up where the last one lies. Which layers read one tensor is not guessed from their names but heard in a pass
(``Listener``), and each time looked at again: a layer that is asked with another tensor answers by itself.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from . import fused_linear
from .adapter_layer import AdapterLayer
from .flat import FlatParameters, Slot


class Listener:
    """Hears which layers are asked with the very same tensor."""

    def __init__(self) -> None:
        self._calls: list[str] = []
        self._groups: list[tuple[weakref.ref[Tensor], int, list[int]]] = []

    def note(self, layer: str, x: Tensor) -> None:
        """``layer`` is asked with ``x``."""
        place = len(self._calls)
        self._calls.append(layer)
        for held, version, calls in reversed(self._groups):
            if held() is x and version == x._version:
                calls.append(place)
                return
        self._groups.append((weakref.ref(x), x._version, [place]))

    def readers(self, across: bool) -> list[list[str]]:
        """Layers that read one tensor, in the order in which they were asked; none is named twice.

        ``across``: however far apart; else only those between which no other layer was asked. A layer that was asked more than
        once is not among them.
        """
        asked, out = Counter(self._calls), []
        for *_, calls in self._groups:
            for run in [calls] if across else _runs(calls):
                names = [name for i in run if asked[name := self._calls[i]] == 1]
                out += [names] if len(names) > 1 else []
        return out


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Parts of ascending ``numbers`` without gaps."""
    return [[n for _, n in part] for _, part in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]


@dataclass(frozen=True)
class Stack:
    """Layers of one width whose up-matrices lie side by side."""

    start: int
    """Of the first up-matrix."""
    count: int
    outputs: int


@dataclass(frozen=True)
class Unit:
    """Layers that read one tensor and whose down-matrices lie side by side, in this order."""

    names: tuple[str, ...]
    layers: tuple[nn.Module, ...]
    start: int
    """Of the first down-matrix."""
    rank: int
    inputs: int
    stacks: tuple[Stack, ...]

    def outputs(self, flat: FlatParameters, x: Tensor) -> tuple[Tensor, ...]:
        """What each of the layers answers to ``x`` (..., inputs) with its LoRA."""
        down = flat.shared_leaf(self.start, (len(self.names) * self.rank, self.inputs))
        ups = [flat.shared_leaf(s.start, (s.count, s.outputs, self.rank)) for s in self.stacks]
        return fused_linear.shared_linear(self.layers, x, down, ups)


def units(
    flat: FlatParameters, branches: Mapping[str, AdapterLayer], layers: Mapping[str, nn.Module], readers: Sequence[Sequence[str]]
) -> list[Unit]:
    """What can be one, of the groups of ``readers`` with ``branches`` that fuse."""
    out, taken = [], set[str]()
    for group in readers:
        fusing = [name for name in group if name in branches and branches[name].fuses and name not in taken]
        for downs in _stacked(sorted((flat.slots[name, "down"] for name in fusing), key=lambda slot: slot.start)):
            if len(downs) > 1:
                names = tuple(slot.layer for slot in downs)
                taken.update(names)
                stacks = [
                    Stack(ups[0].start, len(ups), ups[0].shape[0]) for ups in _stacked([flat.slots[n, "up"] for n in names])
                ]
                found = tuple(layers[name] for name in names)
                out.append(Unit(names, found, downs[0].start, downs[0].shape[0], downs[0].shape[1], tuple(stacks)))
    return out


def _stacked(slots: Sequence[Slot]) -> list[list[Slot]]:
    """``slots`` in their own order, parted wherever the next one is of another size or scale or lies elsewhere."""
    out: list[list[Slot]] = []
    for slot in slots:
        last = out[-1][-1] if out else None
        if last is None or (last.end, last.shape, last.scale) != (slot.start, slot.shape, slot.scale):
            out.append([])
        out[-1].append(slot)
    return out


class SharedAnswers:
    """Answers for layers of one unit from one product, while an adapter is attached."""

    def __init__(self, flat: FlatParameters, found: Sequence[Unit]):
        self._flat = flat
        self._units = {name: unit for unit in found for name in unit.names}
        self._waiting: dict[str, tuple[Tensor, int, Tensor]] = {}

    def answer(self, name: str, x: Tensor, can: Callable[[nn.Module, Tensor], bool]) -> Tensor | None:
        """What the layer ``name`` answers to ``x``; None where it shall answer by itself. ``can``: whether a layer fuses now."""
        asked, version, answer = self._waiting.pop(name, (None, 0, None))
        if asked is x and version == x._version:  # nobody has changed it in place since
            return answer
        unit = self._units.get(name)
        if unit is None or not self._flat.is_live or x.dtype != self._flat.computes_in:
            return None
        if not all(can(layer, x) for layer in unit.layers):
            return None
        answers = unit.outputs(self._flat, x)
        self._waiting |= {other: (x, x._version, answer) for other, answer in zip(unit.names, answers, strict=True)}
        return self._waiting.pop(name)[2]

    def forget(self) -> None:
        """Lets go of what nobody has asked for."""
        self._waiting.clear()
