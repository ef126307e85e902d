"""The page: every cell where it belongs, labels that can be read."""

from __future__ import annotations

import pytest
from lora_atelier.training.grid.picture import Failed, compose
from PIL import Image, ImageChops

COLOURS = [["red", "green", "blue"], ["cyan", "magenta", "yellow"]]


def page(side: int, cells=None) -> Image.Image:
    cells = cells or [[Image.new("RGB", (side, side), c) for c in row] for row in COLOURS]
    return compose(
        cells, ["no LoRA", "epoch 1", "epoch 2"], ["0.6", "1"], title="ink   on SD15", subtitle="a fox", cell_size=(side, side)
    )


@pytest.mark.parametrize("side", [32, 128, 512])
def test_every_cell_is_whole_and_in_its_place(side):
    sheet = page(side)
    places = {}
    for name in (c for row in COLOURS for c in row):
        colour = Image.new("RGB", (1, 1), name).getpixel((0, 0))
        mask = (
            ImageChops.difference(sheet, Image.new("RGB", sheet.size, colour)).convert("L").point(lambda v: 255 if v == 0 else 0)
        )
        box = mask.getbbox()
        assert (box[2] - box[0], box[3] - box[1]) == (side, side), name
        places[name] = box[:2]
    assert places["red"][0] < places["green"][0] < places["blue"][0]
    assert places["red"][1] == places["blue"][1] < places["cyan"][1]
    assert places["cyan"][0] == places["red"][0]


def test_labels_are_drawn_and_differ():
    sheet = page(128)
    blank = compose(
        [[Image.new("RGB", (128, 128), c) for c in row] for row in COLOURS], ["", "", ""], ["", ""], title="", subtitle="",
        cell_size=(128, 128),
    )  # fmt: skip
    assert sheet.crop((0, 0, sheet.width, 60)).getcolors(100_000) != blank.crop((0, 0, sheet.width, 60)).getcolors(100_000)


def test_missing_and_failed_cells_leave_the_page_whole():
    cells = [[None, Failed("OutOfMemoryError: not enough"), Image.new("RGB", (96, 96), "red")] for _ in range(2)]
    sheet = page(96, cells)
    assert sheet.size == page(96).size
    failed = Failed("y" * 500)
    assert page(96, [[failed] * 3] * 2).size == sheet.size
