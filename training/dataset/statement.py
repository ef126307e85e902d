"""What a node says of its work: counts, warnings, notes and tables, for the canvas, the log and whoever asks by the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

SHOWN = 1000
"""Rows of a table that a page gets; the log has all of them."""


@dataclass(frozen=True)
class Table:
    """Rows under a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: int = 0
    """Rows that were left out at its end."""

    @classmethod
    def cut(cls, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], most: int) -> Table:
        """The first ``most`` of the rows, and how many there are besides."""
        return cls(title, columns, tuple(rows)).within(most)

    def within(self, most: int) -> Table:
        """With at most so many rows."""
        return replace(self, rows=self.rows[:most], more=self.more + max(0, len(self.rows) - most))

    def lines(self) -> list[str]:
        """In Markdown."""
        rows = (self.columns, tuple("---" for _ in self.columns), *self.rows)
        lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
        return [*lines, f"and {self.more} more"] if self.more else lines


@dataclass(frozen=True)
class Statement:
    """What is said, each sentence on its own; the most important comes first in each part."""

    counts: tuple[str, ...]
    """What there is and what was done, always shown."""
    warnings: tuple[str, ...] = ()
    """What the person should look at."""
    notes: tuple[str, ...] = ()
    """What is as it should be, and still worth knowing."""
    tables: tuple[Table, ...] = ()

    def text(self) -> str:
        """All of it, line by line; tables in Markdown."""
        lines = [*self.counts, *(f"Note: {sentence}" for sentence in (*self.warnings, *self.notes))]
        return "\n".join([*lines, *(line for table in self.tables if table.rows for line in ("", *table.lines()))])

    def shown(self) -> dict[str, list[object]]:
        """As a part of a node's ``ui``: the text, and the same in its parts for the node's panel."""
        part = replace(self, tables=tuple(table.within(SHOWN) for table in self.tables))
        return {"text": [part.text()], "told": [asdict(part)]}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or "(empty)"
