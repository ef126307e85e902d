"""Grid rendering: from axes to pages; what is missing is drawn, the costliest change outermost, and kept at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from PIL import Image

from .. import compatibility, host
from ..config.sampling import Sampling
from ..dataset.cache import cache_key
from ..dataset.images import to_picture
from ..errors import AtelierError
from ..network.scope import adaptable_layers
from ..runs.layout import CELLS_FOLDER
from .advice import Advice
from .alike import repeats
from .cell_renderer import CellRenderer
from .cells import CellFacts, CellStore, contents
from .judge import Judge, Losses, advise, advise_page, compared, judged, table
from .lora import Lora, UnusedLayers, passed_over
from .pages import Pages
from .pixels import to_batch
from .plan import Axes, Column, describe_size
from .sheet import Failed

__all__ = ["Grid", "Sampling", "to_batch", "to_picture"]

log = logging.getLogger("lora-atelier")
AT_ONCE = 8
"""Cells of one batch where the number is not given; more gains little and needs much memory."""

Work = dict[int, list[int]]
"""Rows that are still to be drawn, by page."""


class Grid:
    """Renders the pages of one grid into ``folder``."""

    def __init__(
        self,
        model: host.Model,
        text: host.TextEncoder,
        codec: host.PictureCodec,
        axes: Axes,
        sampling: Sampling,
        folder: Path,
        graph: Mapping[str, str],
        *,
        base: str = "",
        together: int = 0,
        judge: Judge | None = None,
        losses: Mapping[str, Losses] | None = None,
        remarks: Sequence[str] = (),
        show: Callable[[str], None] = lambda _line: None,
    ):
        """``base`` names the model in the title; ``together`` cells share a batch at most, 0 for as many as fit; ``remarks`` are
        what is known of the axes before anything is drawn."""
        self.model, self.text, self.axes, self.sampling, self.folder, self.graph = model, text, axes, sampling, folder, graph
        self.judge, self.losses, self.show = judge, losses or {}, show
        compatibility.check(model, text, codec)
        self.brush = CellRenderer(model, text, codec, sampling)
        identity = cache_key(model.sampling_identity(), text.identity(), codec.identity())
        self.store = CellStore(folder / CELLS_FOLDER, identity, graph)
        self.book = Pages(axes, sampling, base or model.family, judge)
        self.together = together or model.pictures_that_fit(min(AT_ONCE, len(axes.strengths)), self.brush.latent_size)
        self._layers, self._names = adaptable_layers(model, text)
        self._remarks = [*remarks, *self.brush.remarks()]
        self._of_files: dict[int, str] = {}
        self._done = self._drawn = 0
        self._seconds = 0.0
        self._advance: Callable[..., None] = lambda _done, _picture: None

    def check(self) -> None:
        """AtelierError, before anything is drawn or written, if the model cannot read what the text encoder gives."""
        if any(self.store.known(self._facts(None, page, 0)) is None for page in range(len(self.axes.pages))):
            self.brush.check()

    def render(self, advance: Callable[..., None]) -> None:
        """Fills every page; ``advance(cells done, page so far)`` may raise to cancel, and what is done stays on disk.

        Files are the outermost axis, because reading a new one costs more than a new prompt or strength.
        """
        self._advance = advance
        self._done = self._drawn = 0
        self._seconds = 0.0
        self.show(describe_size(self.axes, self.sampling.width, self.sampling.height))
        for number, column in enumerate([None, *self.axes.columns]):
            self._column(number, column)

    def save_pages(self) -> list[Path]:
        """Writes every page as far as it is drawn."""
        advice = []
        for page in range(len(self.axes.pages)):
            own = advise_page(self.axes, self.losses, self.judge, page)
            advice.append(replace(self.advice(), reason=" ".join(filter(None, [self.advice().reason, own]))))
        return self.book.save(self.folder, self.graph, advice, self.remarks())

    def advice(self) -> Advice:
        return advise(self.axes, self.losses, self.judge)

    def remarks(self) -> list[str]:
        """What is otherwise than one may think: of the axes, of the files, and pictures that are one and the same."""
        same = repeats(self.axes, self.book.looks)
        return [*self._remarks, *self._of_files.values(), *same, *compared(self.judge)]

    def notes(self) -> list[str]:
        """The numbers, the recommendation and the remarks in words."""
        found = judged(self.axes, self.losses, self.judge)
        scale = self.judge.scale() if self.judge is not None else None
        return [*table(self.axes, found, scale), f"Hint: {self.advice().reason}", *self.remarks()]

    def _column(self, number: int, column: Column | None) -> None:
        """One file on every page; a file that cannot be read costs its own cells only."""
        rows = range(len(self.axes.strengths) if column else 1)
        if column is None:
            for page in self._take_known(number, None, rows):
                self._attempt(number, None, page, [0], partial(self._plain_cell, page))
            return
        try:
            if not column.file.path.is_file():
                raise AtelierError(f"{column.file.path.name} is gone; train again, or choose other epochs.")
            if said := passed_over(column.file.path, self._names):
                self._of_files[number] = f"{column.label}: {said}"
            missing = self._take_known(number, column, rows)
            if not missing:
                return
            lora = Lora(column.file.path, self.model, self.text, self._layers, self._names)
        except (AtelierError, OSError, ValueError, RuntimeError) as error:
            log.exception("grid: %s cannot be used", column.file.path)
            for page in range(len(self.axes.pages)):
                for row in rows:
                    if (number, row) not in self.book.cells[page]:
                        self._place(number, page, row, Failed(_reason(error, self.model)))
            return
        missing = self._take_control(number, column, missing)
        if lora.beside:
            missing = self._draw_beside(number, column, lora, missing)
        self._draw_merged(number, column, lora, missing)

    def _plain_cell(self, page: int, _rows: Sequence[int]) -> list[Image.Image]:
        return [self.brush.plain(self.axes.pages[page])]

    def _take_known(self, number: int, column: Column | None, rows: Sequence[int]) -> Work:
        """Places what was drawn before; the rest by page."""
        missing: Work = {}
        for page in range(len(self.axes.pages)):
            for row in rows:
                if (path := self.store.known(self._facts(column, page, row))) is not None:
                    self._place(number, page, row, path)
                else:
                    missing.setdefault(page, []).append(row)
        return missing

    def _take_control(self, number: int, column: Column, missing: Work) -> Work:
        """At strength 0 a file changes nothing: its cell is the picture without a LoRA. Returns what is still to be drawn."""
        left: Work = {}
        for page, rows in missing.items():
            control = self.book.cells[page].get((0, 0))
            for row in rows:
                idle = self.axes.strengths[row] == 0 and self._text_strength(0.0) == 0
                if idle and isinstance(control, Path):
                    with Image.open(control) as picture:
                        self._place(number, page, row, self.store.save(self._facts(column, page, row), picture.convert("RGB")))
                else:
                    left.setdefault(page, []).append(row)
        return left

    def _draw_beside(self, number: int, column: Column, lora: Lora, missing: Work) -> Work:
        """Draws with the strength as a number, several in a batch; what cannot be drawn so is returned."""
        for page, rows in missing.items():
            left = list(rows)
            while left:
                group, left = left[: self.together], left[self.together :]
                try:
                    self._attempt(number, column, page, group, partial(self._beside_cells, lora, page))
                except UnusedLayers as error:
                    log.warning("grid: %s: %s; the host merges it instead", column.file.path.name, error)
                    return {p: [r for r in missing[p] if (number, r) not in self.book.cells[p]] for p in missing}
        return {}

    def _beside_cells(self, lora: Lora, page: int, rows: Sequence[int]) -> list[Image.Image]:
        strengths = [self.axes.strengths[row] for row in rows]
        return self.brush.beside(lora, self.axes.pages[page], strengths, [self._text_strength(s) for s in strengths])

    def _draw_merged(self, number: int, column: Column, lora: Lora, missing: Work) -> None:
        """Draws with weights that the host has merged: strengths outside, since each costs a pass over the model."""
        for row in sorted({row for rows in missing.values() for row in rows}):
            strength = self.axes.strengths[row]
            merge = cache(partial(lora.merged, strength, self._text_strength(strength)))
            for page in (page for page, rows in missing.items() if row in rows):
                self._attempt(number, column, page, [row], partial(self._merged_cell, merge, page))

    def _merged_cell(
        self, merge: Callable[[], tuple[host.Model, host.TextEncoder]], page: int, _rows: Sequence[int]
    ) -> list[Image.Image]:
        return [self.brush.merged(*merge(), self.axes.pages[page])]

    def _attempt(
        self,
        number: int,
        column: Column | None,
        page: int,
        rows: Sequence[int],
        draw: Callable[[Sequence[int]], list[Image.Image]],
    ) -> None:
        """Draws and keeps cells; if they fail together, one by one from here on. One that fails stays blank with its reason."""
        start = time.monotonic()
        try:
            pictures = draw(rows)
        except UnusedLayers:
            raise
        except Exception as error:
            if host.is_interrupt(error):
                raise
            if len(rows) == 1:
                log.exception("grid: cell failed: %s, row %d", column.label if column else "no LoRA", rows[0])
                self._place(number, page, rows[0], Failed(_reason(error, self.model)))
                return
            log.warning("grid: %d cells in one batch failed (%s); they are drawn one by one from here on", len(rows), error)
            self.together = 1
            host.free_memory()
            for row in rows:
                self._attempt(number, column, page, [row], draw)
            return
        self._keep(number, column, page, rows, pictures, time.monotonic() - start)

    def _keep(
        self, number: int, column: Column | None, page: int, rows: Sequence[int], pictures: Sequence[Image.Image], seconds: float
    ) -> None:
        self._seconds += seconds
        self._drawn += len(rows)
        for row, picture in zip(rows, pictures, strict=True):
            self._place(number, page, row, self.store.save(self._facts(column, page, row), picture))

    def _place(self, number: int, page: int, row: int, cell: Path | Failed) -> None:
        self.book.put(page, (number, row), cell)
        self._done += 1
        self.show(self._status())
        self._advance(self._done, self.book.preview(page))

    def _status(self) -> str:
        """``cell 7 of 31 · 2.1 s a cell · 0:50 left``, the time by what was drawn so far."""
        line = f"cell {self._done} of {self.axes.cells}"
        if not self._drawn:
            return line
        pace = self._seconds / self._drawn
        minutes, seconds = divmod(round(pace * (self.axes.cells - self._done)), 60)
        return f"{line} · {pace:.1f} s a cell · {minutes}:{seconds:02d} left"

    def _text_strength(self, strength: float) -> float:
        return strength if self.axes.text_strength is None else self.axes.text_strength

    def _facts(self, column: Column | None, page: int, row: int) -> CellFacts:
        shown = self.axes.pages[page]
        sampling = replace(self.sampling, seed=shown.seed)
        reading = self.text.reading_of(f"{shown.prompt}\n{sampling.negative}")
        if column is None:
            return CellFacts(shown.prompt, None, None, None, 0, 0, sampling, reading)
        path, strength = column.file.path, self.axes.strengths[row]
        return CellFacts(
            shown.prompt, host.lora_name(path), contents.of(path), column.file.epoch, strength, self._text_strength(strength),
            sampling, reading,
        )  # fmt: skip


def _reason(error: Exception, model: host.Model) -> str:
    error = compatibility.told(error, model) or error
    return str(error) if isinstance(error, AtelierError) else f"{type(error).__name__}: {error}"


def drawn_pages(paths: Sequence[Path]) -> Iterator[Image.Image]:
    """Saved pages, opened one by one."""
    for path in paths:
        with Image.open(path) as picture:
            yield picture.convert("RGB")
