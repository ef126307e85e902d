"""One page of the grid as a picture: cells, labels, title. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER, EMPTY = (24, 24, 27), (113, 113, 122), (255, 255, 255), (244, 244, 245)


@dataclass(frozen=True)
class Failed:
    """A cell that could not be rendered."""

    reason: str


Font = ImageFont.FreeTypeFont
Cell = Image.Image | Failed | None
"""A picture, a failure, or None for a cell that has not been rendered yet."""


def compose(
    cells: Sequence[Sequence[Cell]],
    columns: Sequence[str],
    rows: Sequence[str],
    *,
    title: str,
    subtitle: str,
    cell_size: tuple[int, int],
) -> Image.Image:
    """``cells[row][column]`` on one page, with the column labels above, the row labels at the left and the title on top.

    ``cell_size`` is (width, height) in pixels. Letters grow with the cells but stay readable on small ones, and a label that
    is wider than its column is shortened.
    """
    width, height = cell_size
    size = max(12, min(40, round(min(width, height) / 9)))
    font, bold = _font(size), _font(round(size * 1.25))
    gap = max(2, round(size / 4))
    left = max((_width(font, label) for label in rows), default=0) + 3 * gap
    top = round(size * 5.2)
    page_width = max(left + len(columns) * (width + gap) + gap, _width(bold, title) + 2 * gap)
    page = Image.new("RGB", (page_width, top + len(rows) * (height + gap) + gap), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((2 * gap, gap), _fit(bold, title, page_width - 3 * gap), INK, bold)
    draw.text((2 * gap, gap + round(size * 1.7)), _fit(font, subtitle, page_width - 3 * gap), FAINT, font)
    for x, label in enumerate(columns):
        at = left + x * (width + gap) + width // 2
        draw.text((at, top - 2 * gap), _fit(font, label, width), INK, font, anchor="ms")
    for y, label in enumerate(rows):
        draw.text((left - 2 * gap, top + y * (height + gap) + height // 2), label, INK, font, anchor="rm")
        for x in range(len(columns)):
            corner = (left + x * (width + gap), top + y * (height + gap))
            _draw_cell(page, draw, cells[y][x], corner, cell_size, font)
    return page


def _draw_cell(
    page: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, corner: tuple[int, int], size: tuple[int, int], font: Font
) -> None:
    width, height = size
    if isinstance(cell, Image.Image):
        page.paste(cell, corner)
        return
    draw.rectangle((*corner, corner[0] + width - 1, corner[1] + height - 1), fill=EMPTY)
    if isinstance(cell, Failed):
        lines = _wrap(font, cell.reason, width - 8)[: max(1, height // round(font.size + 2))]
        draw.multiline_text((corner[0] + 4, corner[1] + 4), "\n".join(lines), FAINT, font)


def _font(size: int) -> Font:
    """Pillow's own letters, so that a grid looks the same on every system."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, so it cannot draw labels")
    return font


def _width(font: Font, text: str) -> int:
    return round(font.getlength(text))


def _fit(font: Font, text: str, width: int) -> str:
    if _width(font, text) <= width:
        return text
    while text and _width(font, text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _wrap(font: Font, text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _width(font, longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
