"""Cell keeper: has cells drawn, keeps them on the disk at once, puts them on their pages, and tells how far the grid is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from PIL import Image

from .. import compatibility, host
from ..dataset.images import open_picture
from ..dataset.moving import Film
from ..errors import AtelierError
from ..prompting import ControlPictures
from .cell_renderer import Drawn
from .cells import CellFacts, SavedBehind, contents
from .judge import Place
from .pace import Pace
from .pages import Pages
from .plan import Column, describe_size
from .sheet import Failed
from .side_by_side import UnusedLayers

log = logging.getLogger("lora-atelier")
Work = dict[int, list[int]]
"""Rows that are still to be drawn, by page."""
Spot = tuple[Column | None, list[Place]]
"""A picture's file, and where on its page it is shown."""
Draw = Callable[[Sequence[int]], Sequence[Drawn]]
"""Draws those of some spots."""


class CellKeeper:
    """Keeps the cells of the pages in ``book``, which ``model`` and ``text`` draw."""

    def __init__(
        self, store: SavedBehind, book: Pages, model: host.Model, text: host.TextEncoder, show: Callable[[str], None],
        controls: ControlPictures,
    ):  # fmt: skip
        self.store, self.book, self.model, self.text, self.show, self.controls = store, book, model, text, show, controls
        self._advance: Callable[..., None] = lambda _done, _page: None
        self._pace = Pace(book.axes.cells)

    @contextmanager
    def keeping(self, advance: Callable[..., None]) -> Iterator[None]:
        """While it lasts cells are drawn, ``advance(cells done, page so far)`` being told of each; then all are on the disk."""
        axes, sampling = self.book.axes, self.book.sampling
        self._advance, self._pace = advance, Pace(axes.cells)
        self.show(describe_size(axes, sampling.width, sampling.height))
        with self.store:
            yield

    def known(self, column: Column | None, page: int, row: int) -> Path | None:
        """The file of a cell that was drawn before."""
        return self.store.known(self._facts(column, page, row))

    def path(self, column: Column | None, page: int, row: int) -> Path:
        """Where a cell is kept."""
        return self.store.store.path(self._facts(column, page, row))

    def drawn_before(self, column: Column | None, page: int, row: int) -> Drawn | None:
        """What a kept cell was drawn as."""
        facts = self._facts(column, page, row)
        if facts.sampling.frames > 1:
            return self.store.store.film(facts)
        path = self.store.known(facts)
        return None if path is None else open_picture(path)

    def take_known(self, number: int, column: Column | None, rows: Sequence[int]) -> Work:
        """Places what was drawn before; the rest by page."""
        missing: Work = {}
        for page in range(len(self.book.axes.pages)):
            for row in rows:
                if (path := self.known(column, page, row)) is not None:
                    self.place(page, (number, row), path)
                else:
                    missing.setdefault(page, []).append(row)
        return missing

    def attempt(self, page: int, spots: Sequence[Spot], draw: Draw, release: Callable[[], None] = lambda: None) -> bool:
        """Has cells drawn, and keeps them; False where they failed together and were drawn one by one, after a ``release``.

        One that fails by itself stays blank with its reason. UnusedLayers passes.
        """
        every = range(len(spots))
        if self._drawn(page, spots, every, draw):
            return True
        release()
        host.free_memory()
        for one in every:
            self._drawn(page, spots, [one], draw)
        return False

    def _drawn(self, page: int, spots: Sequence[Spot], some: Sequence[int], draw: Draw) -> bool:
        start = time.monotonic()
        try:
            pictures = draw(some)
        except UnusedLayers:
            raise
        except Exception as error:
            if host.is_interrupt(error):
                raise
            if len(some) > 1:
                log.warning("grid: %d cells in one batch failed (%s); they are drawn one by one from here on", len(some), error)
                return False
            pictures = [Failed(self.reason(error))]
            log.exception("grid: a cell failed")
        self._pace.drew(sum(len(spots[one][1]) for one in some), time.monotonic() - start)
        for one, picture in zip(some, pictures, strict=True):
            self.put(page, spots[one], picture)
        return True

    def put(self, page: int, spot: Spot, drawn: Drawn) -> None:
        """Keeps a picture, and shows it in all its places."""
        column, places = spot
        for place in places:
            if isinstance(drawn, Failed):
                log.error("grid: no cell for %s, row %d: %s", column.label if column else "no LoRA", place[1], drawn.reason)
                self.place(page, place, drawn)
            else:
                path = self.store.save(self._facts(column, page, place[1]), drawn)
                self.place(page, place, path, drawn.still if isinstance(drawn, Film) else drawn)

    def place(self, page: int, place: Place, cell: Path | Failed, drawn: Image.Image | None = None) -> None:
        """Shows a cell; ``drawn`` is what is in its file, or will be."""
        self.book.put(page, place, cell, drawn)
        if self.book.sampling.frames > 1 and isinstance(cell, Path):
            column = self.book.axes.columns[place[0] - 1] if place[0] else None
            self.book.films[page][place] = self.store.store.film_path(self._facts(column, page, place[1])).name
        self._pace.done += 1
        self.show(str(self._pace))
        self._advance(self._pace.done, self.book.preview(page))

    def finish(self) -> None:
        """Waits until all is on the disk."""
        self.store.finish()

    def reason(self, error: Exception) -> str:
        """Why there is no picture."""
        error = compatibility.told(error, self.model) or error
        return str(error) if isinstance(error, AtelierError) else f"{type(error).__name__}: {error}"

    def _facts(self, column: Column | None, page: int, row: int) -> CellFacts:
        axes, shown = self.book.axes, self.book.axes.pages[page]
        sampling = replace(self.book.sampling, seed=shown.seed)
        beside = self.controls.digest(shown.control)
        reading = (*self.text.reading_of(f"{shown.prompt}\n{sampling.negative}"), *([beside] if beside else []))
        if column is None:
            return CellFacts(shown.prompt, None, None, None, 0, 0, sampling, reading)
        name, strength = ", ".join(map(host.lora_name, column.paths)), axes.strengths[row]
        epoch = None if column.mean_of else column.file.epoch
        return CellFacts(
            shown.prompt, name, contents.of_all(column.paths), epoch, strength, axes.on_text(strength), sampling, reading
        )
