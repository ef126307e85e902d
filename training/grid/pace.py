"""Pace of a grid: how many cells are done, how long one takes, and so when the rest will be there."""

from __future__ import annotations


class Pace:
    """Counts up to so many ``cells``."""

    def __init__(self, cells: int):
        self.cells, self.done = cells, 0
        self._drawn, self._seconds = 0, 0.0

    def drew(self, cells: int, seconds: float) -> None:
        """So many were drawn in that time; others were there before."""
        self._drawn += cells
        self._seconds += seconds

    def __str__(self) -> str:
        """``cell 7 of 31 · 2.1 s a cell · 0:50 left``, the time by what was drawn so far, and none in the end."""
        line = f"cell {self.done} of {self.cells}"
        if not self._drawn:
            return line
        pace = self._seconds / self._drawn
        if self.done >= self.cells:
            return f"{line} · {pace:.1f} s a cell"
        minutes, seconds = divmod(max(1, round(pace * (self.cells - self.done))), 60)  # 0:00 would be the end
        return f"{line} · {pace:.1f} s a cell · {minutes}:{seconds:02d} left"
