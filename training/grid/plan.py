"""Grid plan: which cells there are, and whether they can all be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import AtelierError
from ..runs.record import SavedLoRA
from ..runs.run import Epochs
from .axes import EpochChoice

MAX_CELLS = 1000
MAX_CELL_PIXELS = 50_000_000
PAGE_PIXELS = 40_000_000
"""Cells on one picture; a larger grid goes on on the next."""
PAGE_SIDE = 16_000
"""Pixels; many programs open nothing larger."""


@dataclass(frozen=True)
class Column:
    """One LoRA file of the grid."""

    file: SavedLoRA
    run: str
    """The name that its epochs share."""
    label: str


@dataclass(frozen=True)
class Page:
    """What all cells of a page share."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Axes:
    """What varies: a page a prompt and seed, a column a file (the first without any LoRA), a row a strength."""

    prompts: tuple[str, ...]
    columns: tuple[Column, ...]
    strengths: tuple[float, ...]
    seeds: tuple[int, ...]
    text_strength: float | None = None
    """Strength on the text encoder; None: that of the cell."""

    @property
    def pages(self) -> list[Page]:
        return [Page(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @property
    def cells(self) -> int:
        """Pictures to sample: the control is sampled once a page and shown in every row."""
        return len(self.prompts) * len(self.seeds) * (1 + len(self.columns) * len(self.strengths))

    @property
    def title(self) -> str:
        return ", ".join(dict.fromkeys(column.run for column in self.columns))


def columns_of(runs: Sequence[Epochs], choice: EpochChoice) -> tuple[Column, ...]:
    """The chosen files of every run, in order; AtelierError when there are none."""
    chosen = [(run, choice.of(run.files)) for run in runs]
    if not any(files for _, files in chosen):
        if not any(run.files for run in runs):
            raise AtelierError("epochs: there is no saved LoRA to show; train first, or name files in lora_files.")
        there = ", ".join(str(file.epoch) for run in runs for file in run.files)
        raise AtelierError(f"which_epochs: none of {choice.text!r} was saved; there are {there}.")
    several = sum(bool(files) for _, files in chosen) > 1
    out = []
    for run, files in chosen:
        for file in files:
            numbered = len(run.files) > 1 or file.kind != "last"
            label = file.label if numbered and not several else f"{run.name} {file.label}" if numbered else run.name
            out.append(Column(file, run.name, label))
    return tuple(out)


def check_size(cells: int, width: int, height: int) -> None:
    """Refuses what would never end or never fit, before anything is rendered."""
    if cells > MAX_CELLS:
        raise AtelierError(
            f"This grid would have {cells} cells; at most {MAX_CELLS}. Use fewer epochs, strengths, prompts or seeds."
        )
    if width * height > MAX_CELL_PIXELS:
        raise AtelierError(
            f"A cell would have {width * height / 1e6:.0f} megapixels; at most {MAX_CELL_PIXELS / 1e6:.0f}. "
            "Use a smaller width and height."
        )


def spread(columns: int, rows: int, width: int, height: int) -> list[tuple[range, range]]:
    """(columns, rows) of every picture that a page is shown on, so that none has more than 40 megapixels or 16,000 pixels a side.

    ``columns`` does not count the control, which stands first on each of them. Rows stay together if they can.
    """
    tall = max(1, min(rows, PAGE_SIDE // height, PAGE_PIXELS // (2 * width * height)))
    wide = max(1, min(PAGE_SIDE // width, PAGE_PIXELS // (tall * width * height)) - 1)
    return [
        (range(x, min(columns, x + wide)), range(y, min(rows, y + tall)))
        for y in range(0, rows, tall)
        for x in range(0, max(1, columns), wide)
    ]


def describe_size(axes: Axes, width: int, height: int) -> str:
    """``61 cells of 512 x 512 px on 2 pages``."""
    pages = len(axes.pages)
    return f"{axes.cells} cells of {width} x {height} px on {pages} page{'s' if pages > 1 else ''}"
