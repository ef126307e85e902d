"""Exponential moving average of the adapter's weights, which is saved and sampled in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import AtelierError

UPDATES = "updates"
"""Name of the count in a state."""


class Average:
    """Exponential moving average of ``weights`` (``adapter.state()``: tensors that share the parameters' storage).

    average = d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)) after n updates, and d = 0 at the first one.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        if not 0 < decay < 1:
            raise AtelierError(f"EMA decay: {decay} must lie between 0 and 1; 0.999 is usual.")
        self.decay = decay
        self.updates = 0
        self._names = tuple(weights)
        self._weights = [tensor.detach() for tensor in weights.values()]
        self._average = [tensor.clone() for tensor in self._weights]

    def decay_at(self, updates: int) -> float:
        """The decay of the update that comes after so many."""
        return min(self.decay, (1 + updates) / (10 + updates)) if updates else 0.0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights in as they are now; to be called after every optimizer step."""
        torch._foreach_lerp_(self._average, self._weights, 1 - self.decay_at(self.updates))
        self.updates += 1

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The adapter has the averaged weights while this lasts, and afterwards its own again, bit for bit."""
        own = [tensor.clone() for tensor in self._weights]
        self._write(self._average)
        try:
            yield
        finally:
            self._write(own)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, for a safetensors file: the averages by the weights' names, and the count."""
        return {**dict(zip(self._names, self._average, strict=True)), UPDATES: torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``state()`` gave; names and shapes must be the same."""
        mine = dict(zip(self._names, self._average, strict=True))
        if set(state) != {*mine, UPDATES} or any(mine[k].shape != state[k].shape for k in mine):
            raise ValueError("this average belongs to another adapter")
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.updates = int(state[UPDATES])

    @torch.no_grad()
    def _write(self, tensors: list[Tensor]) -> None:
        torch._foreach_copy_(self._weights, tensors)
