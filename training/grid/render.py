"""Grid rendering: from axes to pages; what is missing is drawn, in batches across files and strengths, and kept at once."""

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
from .cell_renderer import CellRenderer, Drawn
from .cells import CellFacts, CellStore, SavedBehind, contents
from .judge import Judge, Losses, Place, advise, advise_page, compared, judged, table
from .lora import Lora, passed_over
from .pages import Pages
from .pixels import to_batch
from .plan import Axes, Column, describe_size
from .sheet import Failed
from .side_by_side import UnusedLayers
from .waiting import Due, Order, Waiting

__all__ = ["Grid", "Sampling", "to_batch", "to_picture"]

log = logging.getLogger("lora-atelier")
AT_ONCE = 8
"""Cells of one batch where the number is not given; more gains little and needs much memory."""

Work = dict[int, list[int]]
"""Rows that are still to be drawn, by page."""
Spot = tuple[Column | None, list[Place]]
"""A picture's file, and where on its page it is shown."""


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
        self._layers, self._names = adaptable_layers(model, text)
        rows = sum(bool(strength) or bool(self._text_strength(strength)) for strength in axes.strengths)
        cells = len(axes.columns) * rows
        most = min(together or AT_ONCE, max(1, cells))
        # A batch may begin with one row of a file and end with one of another.
        seats = max([len({i // rows for i in range(i, min(i + most, cells))}) for i in range(0, cells, most)], default=1)
        self.brush = CellRenderer(model, text, codec, sampling, self._layers, seats)
        identity = cache_key(model.sampling_identity(), text.identity(), codec.identity())
        self.store = SavedBehind(CellStore(folder / CELLS_FOLDER, identity, graph))
        self.book = Pages(axes, sampling, base or model.family, judge)
        self.together = together or model.pictures_that_fit(most, self.brush.latent_size)
        self._given = bool(together)
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

        A file is opened once, and let go of when its last cell is drawn; until a batch is full its cells wait for the next
        file's.
        """
        self._advance = advance
        self._done = self._drawn = 0
        self._seconds = 0.0
        self._waiting = Waiting(len(self.axes.pages))
        self.show(describe_size(self.axes, self.sampling.width, self.sampling.height))
        try:
            with self.store:
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
        return [*self._remarks, *self._of_files.values(), *same, *compared(self.judge)]

    def notes(self) -> list[str]:
        """The numbers, the recommendation and the remarks in words."""
        found = judged(self.axes, self.losses, self.judge)
        scale = self.judge.scale() if self.judge is not None else None
        return [*table(self.axes, found, scale), f"Hint: {self.advice().reason}", *self.remarks()]

    def _control(self) -> None:
        """The pictures without any LoRA."""
        missing = self._take_known(0, None, range(1))
        for page in missing:
            self._attempt(page, [(None, [(0, 0)])], partial(self._plain_cell, page, list(missing)))

    def _column(self, number: int, column: Column) -> None:
        """What is known of one file, and the rest to be drawn; a file that cannot be read costs its own cells only."""
        rows = range(len(self.axes.strengths))
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
                        self._place(page, (number, row), Failed(_reason(error, self.model)))
            return
        missing = self._take_control(number, column, missing)
        if not lora.beside:
            self._draw_merged(column, lora, [(page, [(number, row)]) for page in missing for row in missing[page]])
            return
        for page, wanted in missing.items():
            for row in wanted:
                strength = self.axes.strengths[row]
                order = Order(lora, strength, self._text_strength(strength))
                path = self.store.store.path(self._facts(column, page, row))
                self._waiting.add(page, path, Due(order, column, [(number, row)]))

    def _plain_cell(self, page: int, others: Sequence[int], _some: Sequence[int]) -> list[Image.Image]:
        self.brush.read([(None, self.axes.pages[number].prompt) for number in others])
        return [self.brush.plain(self.axes.pages[page])]

    def _take_known(self, number: int, column: Column | None, rows: Sequence[int]) -> Work:
        """Places what was drawn before; the rest by page."""
        missing: Work = {}
        for page in range(len(self.axes.pages)):
            for row in rows:
                if (path := self.store.known(self._facts(column, page, row))) is not None:
                    self._place(page, (number, row), path)
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
                    self.store.finish()
                    with Image.open(control) as opened:
                        picture = opened.convert("RGB")
                    self._put(page, (column, [(number, row)]), picture)
                else:
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
            self._attempt(page, spots, partial(self._beside_cells, page, batch), range(len(batch)))
            self._waiting.take(page, batch)
        except UnusedLayers as error:
            self._waiting.take(page, [due for due in batch if due.places[0] in self.book.cells[page]])
            passed = [lora for lora in before if any(file is lora.of_model or file is lora.of_text for file in error.files)]
            for lora in passed or before:
                log.warning("grid: %s: %s; the host merges it instead", lora.path.name, error)
                taken = self._waiting.take_all_of(lora)
                for column in dict.fromkeys(due.column for _, due in taken):
                    self._draw_merged(column, lora, [(page, due.places) for page, due in taken if due.column is column])
        for lora in set(before) - set(self._waiting.loras()):
            self.brush.forget(lora)

    def _beside_cells(self, page: int, batch: Sequence[Due], some: Sequence[int]) -> Sequence[Drawn]:
        if self.together > 1:  # what other pages need of these files is read along with it
            prompts, negative = [one.prompt for one in self.axes.pages], self.sampling.negative
            self.brush.read([(o, text) for number, o in self._waiting.orders() for text in (prompts[number], negative)])
        return self.brush.beside([batch[i].order for i in some], self.axes.pages[page])

    def _draw_merged(self, column: Column, lora: Lora, missing: Sequence[tuple[int, list[Place]]]) -> None:
        """Draws with weights that the host has merged: strengths outside, since each costs a pass over the model."""
        for row in sorted({places[0][1] for _, places in missing}):
            strength = self.axes.strengths[row]
            merge = cache(partial(lora.merged, strength, self._text_strength(strength)))
            for page, places in missing:
                if places[0][1] == row:
                    self._attempt(page, [(column, places)], partial(self._merged_cell, merge, page))

    def _merged_cell(
        self, merge: Callable[[], tuple[host.Model, host.TextEncoder]], page: int, _some: Sequence[int]
    ) -> list[Image.Image]:
        return [self.brush.merged(*merge(), self.axes.pages[page])]

    def _attempt(
        self, page: int, spots: Sequence[Spot], draw: Callable[[Sequence[int]], Sequence[Drawn]], some: Sequence[int] = (0,)
    ) -> None:
        """Draws and keeps ``some`` of the cells; if they fail together, one by one from here on. One that fails stays blank with
        its reason."""
        start = time.monotonic()
        try:
            pictures = draw(some)
        except UnusedLayers:
            raise
        except Exception as error:
            if host.is_interrupt(error):
                raise
            if len(some) == 1:
                column, places = spots[some[0]]
                log.exception("grid: cell failed: %s, row %d", column.label if column else "no LoRA", places[0][1])
                self._put(page, spots[some[0]], Failed(_reason(error, self.model)))
                return
            log.warning("grid: %d cells in one batch failed (%s); they are drawn one by one from here on", len(some), error)
            self.together = 1
            self.brush.release()
            host.free_memory()
            for one in some:
                self._attempt(page, spots, draw, [one])
            return
        self._seconds += time.monotonic() - start
        self._drawn += sum(len(spots[one][1]) for one in some)
        for one, picture in zip(some, pictures, strict=True):
            self._put(page, spots[one], picture)

    def _put(self, page: int, spot: Spot, drawn: Drawn | Failed) -> None:
        """Keeps a picture and shows it in all its places."""
        column, places = spot
        picture = drawn if isinstance(drawn, Image.Image) else None
        if isinstance(drawn, Exception):
            log.error("grid: cell failed: %s, row %d: %s", column.label if column else "no LoRA", places[0][1], drawn)
            drawn = Failed(str(drawn))
        for place in places:
            if picture is None:
                assert isinstance(drawn, Failed)
                self._place(page, place, drawn)
            else:
                self._place(page, place, self.store.save(self._facts(column, page, place[1]), picture), picture)

    def _place(self, page: int, place: Place, cell: Path | Failed, drawn: Image.Image | None = None) -> None:
        self.book.put(page, place, cell, drawn)
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
