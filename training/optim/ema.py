"""Exponential moving average of the adapter's weights, which is saved and sampled in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import AtelierError
from ..network.flat import FlatParameters

UPDATES = "updates"
"""Name of the count in a state."""


class Average:
    """Exponential moving average of an adapter's weights, which lie in one tensor.

    average = d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)) after n updates, and d = 0 at the first one.
    """

    def __init__(self, flat: FlatParameters, decay: float) -> None:
        if not 0 < decay < 1:
            raise AtelierError(f"EMA decay: {decay} must lie between 0 and 1; 0.999 is usual.")
        self.decay = decay
        self.updates = 0
        self._flat = flat
        self._average = flat.weights.clone()

    def decay_at(self, updates: int) -> float:
        """The decay of the update that comes after so many."""
        return min(self.decay, (1 + updates) / (10 + updates)) if updates else 0.0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights in as they are now; to be called after every optimizer step."""
        self._average.lerp_(self._flat.weights, 1 - self.decay_at(self.updates))
        self.updates += 1

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The adapter has the averaged weights while this lasts, and afterwards its own again, bit for bit."""
        own = self._flat.weights.clone()
        self._write(self._average)
        try:
            yield
        finally:
            self._write(own)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, for a safetensors file: the averages by the weights' names, and the count."""
        return {**self._flat.named(self._average), UPDATES: torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``state()`` gave; names and shapes must be the same."""
        mine = self._flat.named(self._average)
        if set(state) != {*mine, UPDATES} or any(mine[k].shape != state[k].shape for k in mine):
            raise ValueError("this average belongs to another adapter")
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        self.updates = int(state[UPDATES])

    @torch.no_grad()
    def _write(self, weights: Tensor) -> None:
        self._flat.weights.copy_(weights)
