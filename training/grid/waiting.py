"""Cells that wait to be drawn in one batch with others, page by page, and the files that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .judge import Place
from .lora import Lora
from .plan import Column


@dataclass(frozen=True, eq=False)
class CellOrder:
    """What a cell is drawn with beside its page's prompt and seed."""

    lora: Lora
    strength: float
    text_strength: float


@dataclass(frozen=True, eq=False)
class Due:
    """A picture that is to be drawn, and the places in which it is shown: several where files hold the same."""

    order: CellOrder
    column: Column
    places: list[Place]

    @property
    def row(self) -> int:
        return self.places[0][1]


class Waiting:
    """Pictures to be drawn by page, first come, first served."""

    def __init__(self, pages: int):
        self._due: list[dict[Path, Due]] = [{} for _ in range(pages)]

    def add(self, page: int, path: Path, due: Due) -> None:
        """``path`` is where the cell will be kept: what is kept in one place is one picture."""
        there = self._due[page].setdefault(path, due)
        if there is not due:
            there.places.extend(due.places)

    def pages(self, at_least: int = 1) -> list[int]:
        """Pages for which so many pictures wait."""
        return [page for page, due in enumerate(self._due) if len(due) >= max(1, at_least)]

    def first(self, page: int, count: int) -> list[Due]:
        return list(self._due[page].values())[:count]

    def orders(self) -> list[tuple[int, CellOrder]]:
        """(page, order) of all that wait."""
        return [(page, one.order) for page, due in enumerate(self._due) for one in due.values()]

    def loras(self) -> list[Lora]:
        return list(dict.fromkeys(order.lora for _, order in self.orders()))

    def take(self, page: int, some: Sequence[Due]) -> None:
        """These are no longer waited for."""
        self._due[page] = {path: due for path, due in self._due[page].items() if due not in some}

    def take_all_of(self, lora: Lora) -> list[tuple[int, Due]]:
        """What waits with this file, as (page, due); it no longer does."""
        found = [(page, one) for page, due in enumerate(self._due) for one in due.values() if one.order.lora is lora]
        for page, one in found:
            self.take(page, [one])
        return found
