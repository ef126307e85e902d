"""Pictures that may be the same one, resized, saved again, brightened or slightly cropped: a guess from how they look when small.

What is compared is what the picture shows, without a plain background around it: a product on white is mostly white, and whatever
counts the white finds all products alike. Two measures, which err in different ways, have to agree: the edges of a small grey
picture, as a correlation, which neither brightness nor contrast changes and to which plain areas add nothing; and the colours of
a coarse grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 16
"""Pixels of the small grey picture's sides."""
GRID = 4
"""Cells of the colour grid's sides."""
EDGES = 0.93
"""Least correlation of the edges. A copy in JPEG quality 60 has 0.998, one that lost 2 % at each side mostly 0.95."""
COLOUR = 24
"""Largest difference in a cell and channel, of 255; a copy that is 10 % brighter has 23."""
PLAIN_COLOUR = 8
"""The same for pictures without edges, which nothing else tells apart."""
EXTENT = 12
"""Largest difference of the sides of what the pictures show, of 255: cropping 2 % at each side makes it 4 % larger."""
FLAT = 500.0
"""Sum of squared steps below which a picture has no edges: a step of one level of 255 everywhere."""
BACKGROUND = 12
"""Largest difference of 255 that is still background."""
MARGIN = 0.1
"""How much of the background is kept around the content, in shares of its sides."""
BLOCK = 1024
"""Pictures that are compared with all others at once."""
LENGTH = 2 * (SIDE * SIDE + 3 * GRID * GRID + 2)

Levels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32]


def look_of(image: Image.Image) -> str:
    """What near duplicates have in common, in hex digits: grey levels, colours, and how much of the picture its content takes."""
    colours = image.convert("RGB")
    box = _content(np.asarray(colours))
    grey = colours.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box).tobytes()
    grid = colours.resize((GRID, GRID), Image.Resampling.BOX, box).tobytes()
    extent = [round(255 * (box[i + 2] - box[i]) / side) for i, side in enumerate(colours.size)]
    return (grey + grid + bytes(extent)).hex()


def _content(pixels: Levels) -> tuple[float, float, float, float]:
    """Box (left, top, right, bottom) of what stands on a plain background, with a little of that; everything if there is none.

    It is told by where most of the difference to the background lies, so that noise and blur at its rim hardly move it.
    """
    height, width = pixels.shape[:2]
    whole = (0.0, 0.0, float(width), float(height))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.int16)
    plain = np.median(border, axis=0)
    if (np.abs(border - plain).max(axis=1) <= BACKGROUND).mean() < 0.9:
        return whole
    content = np.maximum(np.abs(pixels.astype(np.int16) - plain).max(axis=2) - BACKGROUND, 0)
    if content.max() <= BACKGROUND:
        return whole
    (left, right), (top, bottom) = (_extent(content.sum(axis=axis)) for axis in (0, 1))
    x, y = MARGIN * (right - left), MARGIN * (bottom - top)
    return max(0.0, left - x), max(0.0, top - y), min(whole[2], right + x), min(whole[3], bottom + y)


def _extent(amounts: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Where all but a hundredth of the sum at each end begins and ends."""
    sums = np.concatenate([[0], np.cumsum(amounts)])
    first, last = np.interp([0.01 * sums[-1], 0.99 * sums[-1]], sums, np.arange(len(sums)))
    return float(first), float(last)


def alike(one: str, other: str) -> bool:
    """Whether two ``look`` values may belong to the same picture."""
    return duplicates([one, other]) == [(0, 1)]


def duplicates(looks: Sequence[str]) -> list[tuple[int, int]]:
    """(earlier, later) indices: each later picture with the first one that it looks like; empty looks are passed over.

    A picture that looks like an earlier one is itself compared with none.
    """
    places = [index for index, text in enumerate(looks) if len(text) == LENGTH]
    if len(places) < 2:
        return []
    values = np.frombuffer(bytes.fromhex("".join(looks[place] for place in places)), np.uint8).reshape(len(places), -1)
    edges, flat = _edges(values[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE))
    cells = values[:, SIDE * SIDE :].astype(np.int16)
    found: list[tuple[int, int]] = []
    later: set[int] = set()
    for start in range(0, len(places), BLOCK):
        rows = slice(start, start + BLOCK)
        near = edges[rows] @ edges[: start + BLOCK].T >= EDGES
        near |= flat[rows, None] & flat[None, : start + BLOCK]
        for row, column in zip(*(axis.tolist() for axis in np.nonzero(np.tril(near, start - 1))), strict=True):
            mine = start + row
            if mine in later or column in later:
                continue
            limit = PLAIN_COLOUR if flat[mine] else COLOUR
            apart = np.abs(cells[mine] - cells[column])
            if apart[:-2].max() <= limit and apart[-2:].max() <= EXTENT:
                found.append((places[column], places[mine]))
                later.add(mine)
    return found


def _edges(grey: Levels) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """(steps to the right and lower neighbours, each row of length 1, and which pictures have none; those rows are 0)."""
    levels = grey.astype(np.float32)
    steps = [np.diff(levels, axis=axis).reshape(len(levels), -1) for axis in (1, 2)]
    rows = np.concatenate(steps, axis=1)
    energy = (rows * rows).sum(axis=1)
    flat = energy < FLAT
    rows /= np.sqrt(np.where(flat, np.inf, energy))[:, None]
    return rows, flat
