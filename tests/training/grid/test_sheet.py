"""The page: every cell where it belongs, labels that can be read."""

from __future__ import annotations

import pytest
from lora_atelier.training.grid import sheet
from lora_atelier.training.grid.sheet import Failed, Sheet
from PIL import Image, ImageChops

COLOURS = [["red", "green", "blue"], ["cyan", "magenta", "yellow"]]
LONG = "a-very-long-name-of-a-lora-trained-on-watercolours-of-the-baltic-sea-000012"


def page(side: int, cells=None, columns=("no LoRA", "epoch 1", "epoch 2"), title="ink   on SD15", subtitle="a fox"):
    cells = cells or [[Image.new("RGB", (side, side), c) for c in row] for row in COLOURS]
    drawn = Sheet(title, subtitle, tuple(columns), ("0.6", "1"), (side, side))
    found = drawn.blank()
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            drawn.put(found, x, y, cell)
    return found


def places_of(sheet: Image.Image) -> dict[str, tuple[int, int, int, int]]:
    out = {}
    for name in (c for row in COLOURS for c in row):
        colour = Image.new("RGB", sheet.size, Image.new("RGB", (1, 1), name).getpixel((0, 0)))
        mask = ImageChops.difference(sheet, colour).convert("L").point(lambda v: 255 if v == 0 else 0)
        out[name] = mask.getbbox()
    return out


@pytest.mark.parametrize("side", [24, 32, 128, 512])
@pytest.mark.parametrize("columns", [("no LoRA", "epoch 1", "epoch 2"), ("no LoRA", LONG, LONG)])
def test_every_cell_is_whole_and_in_its_place(side, columns):
    boxes = places_of(page(side, columns=columns, title=LONG + " " + LONG, subtitle="many words " * 60))
    assert all((b[2] - b[0], b[3] - b[1]) == (side, side) for b in boxes.values())
    assert boxes["red"][0] < boxes["green"][0] < boxes["blue"][0]
    assert boxes["red"][1] == boxes["blue"][1] < boxes["cyan"][1]
    assert boxes["cyan"][0] == boxes["red"][0]


def made(side: int, **changes) -> Sheet:
    values = {"title": "ink", "subtitle": "a fox", "columns": ("no LoRA", "epoch 10"), "rows": ("0.5", "1")} | changes
    return Sheet(values.pop("title"), values.pop("subtitle"), values.pop("columns"), values.pop("rows"), (side, side), **values)


@pytest.mark.parametrize("side", [16, 24, 48, 128, 1024])
def test_labels_are_never_smaller_than_can_be_read_and_fit_where_they_are(side):
    for columns in (("no LoRA", "epoch 10"), ("no LoRA", LONG)):
        found = made(side, columns=columns)
        font = sheet._font(found.size)
        assert found.size >= sheet.SMALLEST
        for label in columns:
            lines = found._lines_of(label)
            if found.upwards:
                assert sheet._line(font) <= max(side + found.gap, 2 * sheet.SMALLEST)
            else:
                assert lines is not None and all(sheet._width(font, line) <= side for line in lines)


def test_short_labels_stand_upright_on_usual_cells_and_long_ones_wrap_or_turn():
    assert not made(128).upwards and not made(64).upwards and made(24).upwards
    assert not made(256, columns=("no LoRA", "watercolour epoch 12")).upwards
    assert made(128, columns=("no LoRA", LONG)).upwards


def test_every_part_of_the_page_changes_it():
    plain = made(96).blank()
    for change in ({"title": "wash"}, {"subtitle": "an owl"}, {"columns": ("no LoRA", "epoch 11")}, {"rows": ("0.5", "2")}):
        other = made(96, **change).blank()
        assert other.size != plain.size or other.tobytes() != plain.tobytes(), change
    with_legend = made(96, legend=("Across: epochs. " * 20, "Hint: none.")).blank()
    assert with_legend.height > plain.height and with_legend.width == plain.width
    assert made(96, corner="strength").blank().tobytes() != plain.tobytes()


def test_captions_have_room_of_their_own():
    found = made(128, captions=True)
    drawn = found.blank()
    before = drawn.copy()
    found.put(drawn, 0, 0, Image.new("RGB", (128, 128), "red"), "0.71 / 0.83 / 0.55")
    changed = ImageChops.difference(drawn, before).getbbox()
    left, top = found.place(0, 0)
    assert changed[3] > top + 128 and changed[3] <= found.place(0, 1)[1]
    assert drawn.crop((left, top, left + 128, top + 128)).getcolors() == [(128 * 128, (255, 0, 0))]


def test_missing_and_failed_cells_leave_the_page_whole():
    cells = [[None, Failed("OutOfMemoryError: not enough"), Image.new("RGB", (96, 96), "red")] for _ in range(2)]
    assert page(96, cells).size == page(96).size
    failed = page(96, [[Failed("y" * 500)] * 3] * 2)
    assert failed.size == page(96).size
    assert failed.tobytes() != page(96, [[None] * 3] * 2).tobytes(), "the reason is written into the cell"


def test_a_reason_stays_inside_its_cell():
    found = made(96)
    drawn = found.blank()
    before = drawn.copy()
    found.put(drawn, 1, 0, Failed("RuntimeError: sizes of tensors must match " * 9))
    left, top = found.place(1, 0)
    box = ImageChops.difference(drawn, before).getbbox()
    assert box[0] >= left and box[1] >= top and box[2] <= left + 96 and box[3] <= top + 96


def test_a_cell_of_another_size_is_scaled_to_its_place():
    found = made(32)
    drawn = found.blank()
    found.put(drawn, 0, 0, Image.new("RGB", (128, 128), "red"))
    left, top = found.place(0, 0)
    assert drawn.crop((left, top, left + 32, top + 32)).getcolors() == [(32 * 32, (255, 0, 0))]


def test_names_are_shortened_in_the_middle_since_they_differ_at_their_ends():
    font = sheet._font(14)
    short = sheet._fit(font, LONG, 160)
    assert sheet._width(font, short) <= 160 and short.startswith("a-very") and short.endswith("012") and "…" in short
    assert sheet._fit(font, "ink", 160) == "ink"
