"""Pages of a grid: what is in their cells, their previews, and the pictures that are saved in the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from .. import host
from ..config.sampling import Sampling
from ..dataset.cache import cache_key
from ..dataset.images import open_picture
from ..errors import AtelierError, counted
from ..files import HandedOn, replacing
from .advice import Advice
from .alike import Looks
from .cells import png_info
from .judge import Judge, Place
from .plan import Axes, spread
from .sheet import Cell, Failed, Sheet, captions_fit

SHOWN = HandedOn()
"""Pages that nodes have shown."""
KEY = "lora_atelier.grid"
"""Name of the PNG text that holds a page's axes as JSON."""
PREVIEW = 768
"""Longer side, in pixels, that a page on the way is at most about."""


class Pages:
    """The cells of every page by place, as files; pictures are opened only to be put on a page."""

    def __init__(self, axes: Axes, sampling: Sampling, base: str, judge: Judge | None = None):
        self.axes, self.sampling, self.base, self.judge = axes, sampling, base, judge
        self.cells: list[dict[Place, Path | Failed]] = [{} for _ in axes.pages]
        self.films: list[dict[Place, str]] = [{} for _ in axes.pages]
        """By page; the files that hold the films of which cells are frames."""
        self.looks: list[Looks] = [{} for _ in axes.pages]
        """By page; what two equal pictures have in common."""
        self._previews: dict[int, Image.Image] = {}
        share = PREVIEW / max(sampling.width * (1 + len(axes.columns)), sampling.height * len(axes.strengths))
        scale = min(1.0, max(share, 24 / min(sampling.width, sampling.height)))
        self._small = max(1, round(sampling.width * scale)), max(1, round(sampling.height * scale))

    def put(self, page: int, place: Place, cell: Path | Failed, drawn: Image.Image | None = None) -> None:
        """Keeps a cell, looks at it, and draws it on the preview; the control goes into every row.

        ``drawn`` is what is in the file, or will be.
        """
        self.cells[page][place] = cell
        self.looks[page].pop(place, None)
        picture: Cell = cell if isinstance(cell, Failed) else drawn or _open(cell)
        if isinstance(picture, Image.Image):
            self.looks[page][place] = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        if self.judge is not None and isinstance(picture, Image.Image):
            self.judge.see(page, place, picture)
        sheet = self._sheet(page, range(len(self.axes.columns)), range(len(self.axes.strengths)), self._small)
        if page not in self._previews:
            self._previews[page] = sheet.blank()
        for row in self._rows_of(place):
            sheet.put(self._previews[page], place[0], row, picture)

    def preview(self, page: int) -> Image.Image:
        """The page as far as it is drawn, in small."""
        return self._previews[page]

    def save(self, folder: Path, graph: Mapping[str, str], advice: Sequence[Advice], remarks: Sequence[str] = ()) -> list[Path]:
        """Writes every page as PNG, large ones as several, with metadata from which the axes can be restored.

        ``advice`` is one a page; ``remarks`` stand on all of them.
        """
        out = []
        for page in range(len(self.cells)):
            facts, notes = self.facts(page), [f"Hint: {advice[page].reason}", *remarks]
            name = "grid-" + cache_key(self.base, facts)[:12]
            info = png_info({**graph, KEY: json.dumps({**facts, **self.findings(page, advice[page])}, ensure_ascii=True)})
            size = self.sampling.width, self.sampling.height
            parts = spread(len(self.axes.columns), len(self.axes.strengths), *size)
            for number, (columns, rows) in enumerate(parts, 1):
                path = folder / f"{name}{f'-{number}' if len(parts) > 1 else ''}.png"
                with replacing(path) as temporary:
                    self._draw(page, columns, rows, notes).save(temporary, format="PNG", pnginfo=info)
                out.append(path)
        return out

    def facts(self, page: int) -> dict[str, Any]:
        """The axes and settings of a page."""
        shown = self.axes.pages[page]
        return {
            "prompt": shown.prompt,
            **({"control": shown.control + 1} if shown.control >= 0 else {}),
            "epochs": [
                {
                    "file": host.lora_name(c.file.path),
                    "label": c.label,
                    "epoch": None if c.mean_of else c.file.epoch or None,
                    "step": None if c.mean_of else c.file.step or None,
                    **({"mean": list(map(host.lora_name, c.paths))} if c.mean_of else {}),
                }
                for c in self.axes.columns
            ],
            "strengths": list(self.axes.strengths),
            "text_strength": self.axes.text_strength,
            **{**self.sampling.as_dict(), "seed": shown.seed},
        }

    def findings(self, page: int, advice: Advice) -> dict[str, Any]:
        """What was drawn and measured: cells by ``column,row``, column 0 without any LoRA."""
        scores = self.judge.scores.get(page, {}) if self.judge is not None else {}
        return {
            "cells": {
                f"{x},{y}": {"failed": cell.reason} if isinstance(cell, Failed) else self._files(page, (x, y), cell)
                for (x, y), cell in self.cells[page].items()
            },
            "scores": {f"{x},{y}": {k: round(v, 4) for k, v in asdict(s).items()} for (x, y), s in scores.items()},
            "advice": asdict(advice),
        }

    def _files(self, page: int, place: Place, cell: Path) -> dict[str, str]:
        film = self.films[page].get(place)
        return {"file": f"cells/{cell.name}", **({"film": f"cells/{film}"} if film else {})}

    def _draw(self, page: int, columns: range, rows: range, notes: Sequence[str]) -> Image.Image:
        sheet = self._sheet(page, columns, rows, (self.sampling.width, self.sampling.height), notes)
        drawn = sheet.blank()
        for x, number in enumerate([0, *(c + 1 for c in columns)]):
            for y, row in enumerate(rows):
                place = (0, 0) if number == 0 else (number, row)
                cell = self.cells[page].get(place)
                if cell is not None:
                    caption = self.judge.caption(page, place) if self.judge is not None else ""
                    sheet.put(drawn, x, y, cell if isinstance(cell, Failed) else _open(cell), caption)
        return drawn

    def _sheet(self, page: int, columns: range, rows: range, size: tuple[int, int], notes: Sequence[str] | None = None) -> Sheet:
        """The layout of a page, or (without ``notes``) of its preview."""
        axes, s, shown = self.axes, self.sampling, self.axes.pages[page]
        labels = ("no LoRA", *(axes.columns[c].label for c in columns))
        strengths = tuple(f"{axes.strengths[r]:g}" for r in rows)
        title = f"{axes.title}   on {self.base}"
        if notes is None:
            return Sheet(title, "", labels, strengths, size)
        settings = f"{s.sampler} / {s.scheduler}, {counted(s.steps, 'step')}, cfg {s.cfg:g}, seed {shown.seed}"
        if s.frames > 1:
            settings += f", frame {s.shown_frame} of {s.frames}"
        if shown.control >= 0:
            settings += f", beside control picture {shown.control + 1}"
        of_text = "" if axes.text_strength is None else f" of the model, {axes.text_strength:g} of the text encoder"
        legend = [f"Across: {axes.across}, the first column without any. Down: strength{of_text}."]
        scored = self.judge is not None and bool(self.judge.scores.get(page)) and captions_fit("0.00 / 0.00 / 0.00", s.width)
        if scored and self.judge is not None:
            legend.append(
                "Below a cell, how alike it is (1 is the same) to: the dataset / its nearest training picture / the picture "
                f"without LoRA. Compared: {self.judge.embedder.name}."
            )
        return Sheet(
            title, f"{shown.prompt}\n{settings}", labels, strengths, size, "strength", (*legend, *notes), scored
        )  # fmt: skip

    def _rows_of(self, place: Place) -> range:
        return range(len(self.axes.strengths)) if place[0] == 0 else range(place[1], place[1] + 1)


def _open(path: Path) -> Cell:
    try:
        return open_picture(path)
    except AtelierError:
        return Failed(f"{path.name} is {'damaged' if path.exists() else 'gone'}")
