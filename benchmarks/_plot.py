"""Curves as a picture, with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIZE, LEFT, TOP, RIGHT, BOTTOM = (560, 400), 70, 46, 20, 52
COLOURS = ("#0b6e4f", "#c1440e", "#3d5a98", "#8a6d1b")
INK, RULE = "#222222", "#dddddd"


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[tuple[float, float]]


def panel(title: str, below: str, curves: Sequence[Curve]) -> Image.Image:
    """One diagram; the vertical axis ends shortly below the lowest and above the highest point."""
    page = Image.new("RGB", SIZE, "white")
    draw, font, small = ImageDraw.Draw(page), ImageFont.load_default(17), ImageFont.load_default(13)
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    margin = 0.05 * (max(ys) - min(ys)) or 1.0
    low, high, most = min(ys) - margin, max(ys) + margin, max(xs) or 1.0
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most * width, TOP + (high - y) / (high - low) * height

    draw.text((LEFT, 12), title, INK, font)
    for i in range(5):
        x, y = most * i / 4, low + (high - low) * i / 4
        draw.line([place(0, y), place(most, y)], RULE)
        draw.text((LEFT - 8, place(0, y)[1]), f"{y:.3f}", INK, small, anchor="rm")
        draw.text((place(x, low)[0], SIZE[1] - BOTTOM + 6), f"{x:.0f}", INK, small, anchor="ma")
    draw.text((LEFT + width / 2, SIZE[1] - 22), below, INK, small, anchor="ma")
    ends = [curve.points[-1][1] for curve in curves]
    # Names stand where the curves don't end.
    legend = TOP + 8 if sum(ends) / len(ends) < (low + high) / 2 else SIZE[1] - BOTTOM - 8 - 18 * len(curves)
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        points = [place(x, y) for x, y in curve.points]
        draw.line(points, colour, 3, joint="curve")
        for x, y in points:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
        draw.text((LEFT + width - 6, legend + 18 * i), curve.name, colour, small, anchor="ra")
    return page


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (sum(p.width for p in panels), max(p.height for p in panels)), "white")
    x = 0
    for one in panels:
        page.paste(one, (x, 0))
        x += one.width
    return page
