"""Grid rendering: from axes to pages; what is missing is drawn, in batches across files and strengths, and kept at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from PIL import Image

from .. import compatibility, host
from ..config.sampling import Sampling
from ..dataset.cache import cache_key
from ..dataset.images import to_picture
from ..dataset.statement import Statement
from ..errors import AtelierError
from ..network.scope import adaptable_layers
from ..prompting import ControlPictures
from ..runs.layout import CELLS_FOLDER
from . import lettering
from .advice import Advice
from .alike import repeats
from .cell_keeper import CellKeeper, Spot, Work
from .cell_renderer import CellRenderer, Drawn
from .cells import CellStore, SavedBehind
from .judge import Judge, Losses, Place, advise, advise_page, compared, judged, table
from .lora import Lora, passed_over
from .pages import Pages
from .pixels import to_batch
from .plan import Axes, Column
from .sheet import Failed
from .side_by_side import UnusedLayers
from .waiting import CellOrder, Due, Waiting

__all__ = ["Grid", "Sampling", "to_batch", "to_picture"]

log = logging.getLogger("lora-atelier")
AT_ONCE = 8
"""Cells of one batch where the number is not given; more gains little and needs much memory."""


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
        controls: ControlPictures | None = None,
        show: Callable[[str], None] = lambda _line: None,
        wired: host.Wired = host.NOTHING_WIRED,
    ):
        """``base`` names the model in the title; ``together`` cells share a batch at most, 0 for as many as fit; ``remarks`` are
        what is known of the axes before anything is drawn; ``wired`` takes the place of some of ``sampling``."""
        wired.check(model)
        together = together if wired.draws_batches else 1
        self.model, self.text, self.axes, self.sampling, self.folder, self.graph = model, text, axes, sampling, folder, graph
        self.judge, self.losses = judge, losses or {}
        compatibility.check(model, text, codec)
        self._layers, self._names = adaptable_layers(model, text)
        most, seats = axes.together(together or AT_ONCE)
        self.brush = CellRenderer(model, text, codec, sampling, self._layers, seats, controls, wired)
        through = [wired.identity()] if wired else []
        identity = cache_key(model.sampling_identity(), text.identity(), codec.identity(), *through)
        self.book = Pages(axes, wired.told(sampling), base or model.family, judge)
        store = CellStore(folder / CELLS_FOLDER, identity, graph)
        self.keeper = CellKeeper(SavedBehind(store), self.book, model, text, show, self.brush.controls)
        self.together = together or model.pictures_that_fit(most, self.brush.latent_size, references=self.brush.controls.cells())
        self._given = bool(together)
        self._remarks = [*remarks, *self.brush.remarks(), *wired.remarks(model)]
        self._unused = list(filter(None, [wired.unused()]))
        self._of_files: dict[int, str] = {}

    def check(self) -> None:
        """AtelierError, before anything is drawn or written, if the model cannot read what the text encoder gives."""
        if any(self.keeper.known(None, page, 0) is None for page in range(len(self.axes.pages))):
            self.brush.check()

    def render(self, advance: Callable[..., None]) -> None:
        """Fills every page; ``advance(cells done, page so far)`` may raise to cancel, and what is done stays on disk.

        A file is opened once, and let go of when its last cell is drawn; until a batch is full its cells wait for the next
        file's.
        """
        self._waiting = Waiting(len(self.axes.pages))
        try:
            with self.keeper.keeping(advance):
                self._control()
                for number, column in enumerate(self.axes.columns, 1):
                    self._column(number, column)
                    self._draw_waiting(self.together)
                self._draw_waiting(1)
        finally:
            self.brush.release()

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
        axes = self.axes
        lost = lettering.remark([*axes.prompts, axes.title, self.book.base, *(column.label for column in axes.columns)])
        return [*self._remarks, *self._of_files.values(), *same, *lost, *compared(self.judge)]

    def notes(self) -> list[str]:
        """The numbers, the recommendation and the remarks in words."""
        return [*self._numbers(), f"Hint: {self.advice().reason}", *self.remarks(), *self._unused]

    def statement(self) -> Statement:
        """The same in parts, as the node's panel shows it."""
        compared_by = compared(self.judge)
        warnings = [remark for remark in self.remarks() if remark not in compared_by]
        return Statement((f"Hint: {self.advice().reason}",), tuple(warnings), (*self._numbers(), *compared_by, *self._unused))

    def _numbers(self) -> list[str]:
        found = judged(self.axes, self.losses, self.judge)
        return table(self.axes, found, self.judge.scale() if self.judge is not None else None)

    def _control(self) -> None:
        """The pictures without any LoRA."""
        missing = self.keeper.take_known(0, None, range(1))
        for page in missing:
            self.keeper.attempt(page, [(None, [(0, 0)])], partial(self._plain_cell, page, list(missing)))

    def _column(self, number: int, column: Column) -> None:
        """What is known of one file, and the rest to be drawn; a file that cannot be read costs its own cells only."""
        rows = range(len(self.axes.strengths))
        try:
            for path in column.paths:
                if not path.is_file():
                    raise AtelierError(f"{path.name} is gone; train again, or choose other epochs.")
                if said := passed_over(path, self._names):
                    self._of_files[number] = f"{column.label}: {said}"
            missing = self.keeper.take_known(number, column, rows)
            if not missing:
                return
            lora = Lora(column.paths, self.model, self.text, self._layers, self._names)
        except (AtelierError, OSError, ValueError, RuntimeError) as error:
            log.exception("grid: %s cannot be used", column.label)
            for page in range(len(self.axes.pages)):
                for row in rows:
                    if (number, row) not in self.book.cells[page]:
                        self.keeper.place(page, (number, row), Failed(self.keeper.reason(error)))
            return
        missing = self._take_control(number, column, missing)
        if not lora.beside:
            self._draw_merged(column, lora, [(page, [(number, row)]) for page in missing for row in missing[page]])
            return
        for page, wanted in missing.items():
            for row in wanted:
                strength = self.axes.strengths[row]
                order = CellOrder(lora, strength, self.axes.on_text(strength))
                path = self.keeper.path(column, page, row)
                self._waiting.add(page, path, Due(order, column, [(number, row)]))

    def _plain_cell(self, page: int, others: Sequence[int], _some: Sequence[int]) -> list[Drawn]:
        self.brush.read([(None, text) for n in others for text in self.brush.texts(self.axes.pages[n])])
        return [self.brush.plain(self.axes.pages[page])]

    def _take_control(self, number: int, column: Column, missing: Work) -> Work:
        """At strength 0 a file changes nothing: its cell is the picture without a LoRA. Returns what is still to be drawn."""
        left: Work = {}
        for page, rows in missing.items():
            control = self.book.cells[page].get((0, 0))
            for row in rows:
                idle = self.axes.strengths[row] == 0 and self.axes.on_text(0.0) == 0
                if idle and isinstance(control, Path):
                    self.keeper.finish()
                    if (drawn := self.keeper.drawn_before(None, page, 0)) is not None:
                        self.keeper.put(page, (column, [(number, row)]), drawn)
                        continue
                left.setdefault(page, []).append(row)
        return left

    def _draw_waiting(self, at_least: int) -> None:
        """Draws batch after batch of every page for which so many cells wait."""
        while pages := self._waiting.pages(at_least):
            for page in pages:
                self._draw_batch(page)
            at_least = min(at_least, self.together)

    def _draw_batch(self, page: int) -> None:
        """Draws the first cells that wait for a page with their files beside the model; what cannot be drawn so is merged."""
        before = self._waiting.loras()
        batch = self._waiting.first(page, self.together)
        try:
            if not self._given:
                batch = batch[: self.brush.count_that_fits([due.order for due in batch])]
            spots: list[Spot] = [(due.column, due.places) for due in batch]
            if not self.keeper.attempt(page, spots, partial(self._beside_cells, page, batch), self.brush.shrink):
                self.together = 1
            self._waiting.take(page, batch)
        except UnusedLayers as error:
            self._waiting.take(page, [due for due in batch if due.places[0] in self.book.cells[page]])
            passed = [lora for lora in before if any(file is lora.of_model or file is lora.of_text for file in error.files)]
            for lora in passed or before:
                log.warning("grid: %s: %s; the host merges it instead", lora.name, error)
                taken = self._waiting.take_all_of(lora)
                for column in dict.fromkeys(due.column for _, due in taken):
                    self._draw_merged(column, lora, [(page, due.places) for page, due in taken if due.column is column])
        for lora in set(before) - set(self._waiting.loras()):
            self.brush.forget(lora)

    def _beside_cells(self, page: int, batch: Sequence[Due], some: Sequence[int]) -> Sequence[Drawn]:
        if len(some) > 1:  # what other pages need of these files is read along with it
            pages = self.axes.pages
            self.brush.read([(o, text) for number, o in self._waiting.orders() for text in self.brush.texts(pages[number])])
        return self.brush.beside([batch[i].order for i in some], self.axes.pages[page])

    def _draw_merged(self, column: Column, lora: Lora, missing: Sequence[tuple[int, list[Place]]]) -> None:
        """Draws with weights that the host has merged: strengths outside, since each costs a pass over the model."""
        for row in sorted({places[0][1] for _, places in missing}):
            strength = self.axes.strengths[row]
            merge = cache(partial(lora.merged, strength, self.axes.on_text(strength)))
            for page, places in missing:
                if places[0][1] == row:
                    self.keeper.attempt(page, [(column, places)], partial(self._merged_cell, merge, page))

    def _merged_cell(
        self, merge: Callable[[], tuple[host.Model, host.TextEncoder]], page: int, _some: Sequence[int]
    ) -> list[Drawn]:
        return [self.brush.merged(*merge(), self.axes.pages[page])]


def drawn_pages(paths: Sequence[Path]) -> Iterator[Image.Image]:
    """Saved pages, opened one by one."""
    for path in paths:
        with Image.open(path) as picture:
            yield picture.convert("RGB")
