"""A run that another process keeps: what this one learns with it, it writes nowhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .record import SavedLoRA
from .state import State


class Followed:
    """What the loop asks of a run, where the first of several processes has it."""

    def load_state(self, warn: Callable[[str], None]) -> State | None:
        return None

    def save_state(self, state: State) -> None: ...

    def saved(self) -> Sequence[SavedLoRA]:
        return ()

    def cut_history(self, step: int) -> list[dict[str, Any]]:
        return []

    def append_history(self, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def cut_measured(self, step: int) -> list[dict[str, Any]]:
        return []

    def append_measured(self, epoch: int, step: int, held_out: float | None, training: float) -> None: ...
