"""Page layout: cells, labels, title, legend as one picture. Knows nothing of models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw

from .lettering import Lettering, lettering

INK, FAINT, PAPER, EMPTY = (24, 24, 27), (113, 113, 122), (255, 255, 255), (244, 244, 245)
SMALLEST, LARGEST = 12, 40
"""Heights of letters in pixels."""
NARROWEST = 360
"""Pixels of a page, so that there is room for words."""
EACH = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
"""Letters of scripts that have no spaces between words."""
PIECES = re.compile(rf"[{EACH}]\s*|[^\s\-_/{EACH}]+[\-_/]+(?!\s)|[^\s{EACH}]+\s*|\s+")
"""What a line may end behind: a word, inside a name a hyphen, an underscore or a slash, and any Chinese or Japanese letter."""
LINES = 4
"""Of a column's label."""
LONGEST = 260
"""Pixels of a label that is written upwards."""


@dataclass(frozen=True)
class Failed:
    """A cell that could not be rendered."""

    reason: str


Font = Lettering
Cell = Image.Image | Failed | None
"""A picture, a failure, or None for a cell that has not been rendered yet."""


@dataclass(frozen=True)
class Sheet:
    """The layout of one page.

    Letters grow with the cells and stay readable on small ones; long labels wrap or are written upwards.
    """

    title: str
    subtitle: str
    """Each of its lines wraps by itself, to four at most."""
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cell_size: tuple[int, int]
    """(width, height) in pixels."""
    corner: str = ""
    """What the rows and columns are."""
    legend: tuple[str, ...] = ()
    """Lines at the foot."""
    captions: bool = False
    """Whether there is a line below each cell."""

    @cached_property
    def size(self) -> int:
        return max(SMALLEST, min(LARGEST, round(min(self.cell_size) / 9)))

    @cached_property
    def gap(self) -> int:
        return max(4, round(self.size / 3))

    @cached_property
    def left(self) -> int:
        """Pixels of the column of row labels."""
        labels = max((_width(_font(self.size), label) for label in self.rows), default=0)
        return max(labels, min(_width(_font(SMALLEST), self.corner), 8 * SMALLEST)) + 3 * self.gap

    @cached_property
    def upwards(self) -> bool:
        """Whether the column labels are written upwards, since even four lines would not hold one."""
        return any(self._lines_of(label) is None for label in self.columns)

    def _lines_of(self, label: str) -> list[str] | None:
        font, width = _font(self.size), self.cell_size[0]
        lines = _wrap(font, label, width)
        return lines if len(lines) <= LINES and all(_width(font, line) <= width for line in lines) else None

    @cached_property
    def page_width(self) -> int:
        return max(NARROWEST, self.left + len(self.columns) * (self.cell_size[0] + self.gap) + self.gap)

    @cached_property
    def _heads(self) -> list[tuple[Font, tuple[int, int, int], list[str]]]:
        """Title and subtitle, wrapped."""
        bold, plain = _font(round(self.size * 1.25)), _font(min(self.size, 20))
        room = self.page_width - 4 * self.gap
        lower = [line for part in self.subtitle.split("\n") for line in _wrap(plain, part, room, 4)]
        heads = [(bold, INK, _wrap(bold, self.title, room, 3)), (plain, FAINT, lower)]
        return [head for head in heads if any(head[2])]

    @cached_property
    def _foot(self) -> tuple[Font, list[str]]:
        font = _font(min(self.size, 18))
        return font, [line for text in self.legend for line in _wrap(font, text, self.page_width - 4 * self.gap, 8)]

    @cached_property
    def top(self) -> int:
        """Where the first cell begins."""
        heads = sum(len(lines) * _line(font) for font, _, lines in self._heads)
        return 2 * self.gap + heads + self.gap + self._label_height + 2 * self.gap

    @cached_property
    def _label_height(self) -> int:
        font = _font(self.size)
        if self.upwards:
            return min(LONGEST, max(_width(font, label) for label in self.columns))
        return max((len(self._lines_of(label) or ()) for label in self.columns), default=0) * _line(font)

    @cached_property
    def _caption_height(self) -> int:
        return _line(_font(SMALLEST)) if self.captions else 0

    @cached_property
    def page_size(self) -> tuple[int, int]:
        cells = len(self.rows) * (self.cell_size[1] + self._caption_height + self.gap)
        font, lines = self._foot
        return self.page_width, self.top + cells + self.gap + (len(lines) * _line(font) + self.gap if lines else 0)

    def place(self, x: int, y: int) -> tuple[int, int]:
        """The upper left corner of the cell in column ``x`` and row ``y``, in pixels."""
        width, height = self.cell_size
        return self.left + x * (width + self.gap), self.top + y * (height + self._caption_height + self.gap)

    def blank(self) -> Image.Image:
        """The page without any cell."""
        page = Image.new("RGB", self.page_size, PAPER)
        draw = ImageDraw.Draw(page)
        y = 2 * self.gap
        for font, ink, lines in self._heads:
            for line in lines:
                font.draw(draw, (2 * self.gap, y), line, ink)
                y += _line(font)
        font = _font(self.size)
        small = _font(SMALLEST)
        if self.corner:
            corner = _fit(small, self.corner, self.left - 2 * self.gap)
            small.draw(draw, (self.left - 2 * self.gap, self.top - 2 * self.gap), corner, FAINT, "rs")
        for x, label in enumerate(self.columns):
            self._draw_column(page, draw, font, x, label)
        for row, label in enumerate(self.rows):
            middle = self.place(0, row)[1] + self.cell_size[1] // 2
            font.draw(draw, (self.left - 2 * self.gap, middle), label, INK, "rm")
            for x in range(len(self.columns)):
                draw.rectangle(self._box(x, row), fill=EMPTY)
        font, lines = self._foot
        y = self.page_size[1] - self.gap - len(lines) * _line(font)
        for line in lines:
            font.draw(draw, (2 * self.gap, y), line, FAINT)
            y += _line(font)
        return page

    def put(self, page: Image.Image, x: int, y: int, cell: Cell, caption: str = "") -> None:
        """Draws one cell on the page; one of another size is scaled to it."""
        draw = ImageDraw.Draw(page)
        left, top, right, bottom = self._box(x, y)
        if isinstance(cell, Image.Image):
            fits = cell.size == self.cell_size
            page.paste(cell if fits else cell.resize(self.cell_size, Image.Resampling.BOX), (left, top))
        else:
            draw.rectangle((left, top, right, bottom), fill=EMPTY)
            if isinstance(cell, Failed):
                font = _font(max(SMALLEST, min(20, self.size)))
                room = max(1, (self.cell_size[1] - 8) // _line(font))
                for i, line in enumerate(_wrap(font, cell.reason, self.cell_size[0] - 8, room)):
                    font.draw(draw, (left + 4, top + 4 + i * _line(font)), line, FAINT)
        font = _font(SMALLEST)
        if caption and self.captions:
            font.draw(draw, ((left + right) // 2, bottom + 2), caption, FAINT, "ma")

    def _box(self, x: int, y: int) -> tuple[int, int, int, int]:
        left, top = self.place(x, y)
        return left, top, left + self.cell_size[0] - 1, top + self.cell_size[1] - 1

    def _draw_column(self, page: Image.Image, draw: ImageDraw.ImageDraw, font: Font, x: int, label: str) -> None:
        middle, bottom = self.place(x, 0)[0] + self.cell_size[0] // 2, self.top - 2 * self.gap
        if not self.upwards:
            for i, line in enumerate(reversed(self._lines_of(label) or [])):
                font.draw(draw, (middle, bottom - i * _line(font)), line, INK, "ms")
            return
        text = _fit(font, label, LONGEST)
        strip = Image.new("RGB", (max(1, _width(font, text)), _line(font)), PAPER)
        font.draw(ImageDraw.Draw(strip), (0, 0), text, INK)
        upright = strip.rotate(90, expand=True)
        page.paste(upright, (middle - upright.width // 2, bottom - upright.height))


def captions_fit(caption: str, width: int) -> bool:
    """Whether cells of this width in pixels have room for such a caption."""
    return _width(_font(SMALLEST), caption) <= width


_font = lettering


def _line(font: Font) -> int:
    """Pixels from one line to the next."""
    return round(font.size * 1.3)


def _width(font: Font, text: str) -> int:
    return round(font.length(text))


def _fit(font: Font, text: str, width: int) -> str:
    """``text``, its middle left out if it is too wide: names differ at their ends."""
    if _width(font, text) <= width:
        return text
    kept = len(text)
    while kept > 1:
        kept -= 1
        short = text[: (kept + 1) // 2].rstrip() + "…" + text[len(text) - kept // 2 :].lstrip()
        if _width(font, short) <= width:
            return short
    return "…"


def _wrap(font: Font, text: str, width: int, most: int | None = None) -> list[str]:
    """Lines no wider than ``width`` where words allow; at most ``most`` of them, the rest cut off."""
    lines = [""]
    for piece in PIECES.findall(text.strip()):
        if not lines[-1] or _width(font, (lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    if most is not None and len(lines) > most:
        lines = [*lines[: most - 1], "".join(lines[most - 1 :])]
    lines = [line.strip() for line in lines]
    if most is not None:
        lines = [_fit(font, line, width) if i < most - 1 else _cut(font, line, width) for i, line in enumerate(lines)]
    return lines


def _cut(font: Font, text: str, width: int) -> str:
    """``text``, its end left out if it is too wide."""
    if _width(font, text) <= width:
        return text
    while text and _width(font, text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
