"""Optimizer over flat parameters: one launch for all matrices, wherever its step goes number by number."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..config import OptimizerConfig
from ..network.flat import FlatParameters
from . import flat_state, optimizers


class FlatOptimizer:
    """An optimizer of torch's kind, whose gradients lie in ``flat``."""

    def __init__(self, config: OptimizerConfig, flat: FlatParameters):
        self._flat = flat
        self._whole = optimizers.goes_by_number(config)
        # One in 8 bits scales 256 numbers together, wherever a matrix ends, so what it keeps belongs to the whole.
        self._splits = self._whole and not config.eight_bit
        parts = [(parameters, config.peak * rate) for parameters, rate in flat.parts(self._whole)]
        self._trained = [i for i, (_, rate) in enumerate(parts) if rate > 0]
        self.of_torch = optimizers.build(config, parts)

    def gradients_in_place(self) -> AbstractContextManager[None]:
        """For a step: whatever it trains has its gradient while this lasts."""
        return nullcontext() if self._whole else self._flat.lent()

    def state(self) -> dict[str, Any]:
        """What is kept of each parameter, whichever way they lie."""
        state = self.of_torch.state_dict()
        return flat_state.split(state, self._flat, self._trained) if self._splits else state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state()`` gave; ValueError and the like where it is another's."""
        if self._whole and not self._splits and len(state["state"]) > len(self._trained):
            raise ValueError("it was kept for each matrix by itself")
        self.of_torch.load_state_dict(flat_state.joined(state, self._flat, self._trained) if self._splits else dict(state))
