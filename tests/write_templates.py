"""Writes the templates into ``workflows/`` and a picture beside each: ``python -m pytest tests/write_templates.py`` does it.

It needs a server's ``/object_info``, which the tests have; ``test_templates.py`` holds what is stored to what would be written.
"""

from __future__ import annotations

import colorsys
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_atelier.demo import enlarging, experts, guiding, masking, sliding, sweeping, templates, workflow
from lora_atelier.tests.host import support
from lora_atelier.training.starting import points
from PIL import Image, ImageDraw, ImageFont

FOLDER = support.ROOT / "workflows"


def values_of(description: templates.Description) -> points.Values:
    """The starting point's values, with the repeats for the template's pictures and an optimizer that every computer has."""
    choice = points.Choice(description.starting, templates.SUBJECT, templates.MEMORY)
    values = points.compose(choice, (description.draws,), eight_bit_optimizer=False)
    batch = 1 if description.rate else values["LoadDataset"]["batch_size"]
    repeats, _ = points.length_for(templates.SUBJECT, templates.PICTURES / batch)
    return {**values, "LoadDataset": {**values["LoadDataset"], "batch_size": batch, "repeats": repeats}}


def texts(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(file's name without its ending, its text) of every template."""
    for description in templates.DESCRIPTIONS:
        yield templates.file_name(description), workflow.to_text(templates.build(description, info, values_of(description)))


OTHERS = {module.TITLE: module for module in (enlarging, masking, sliding, sweeping, guiding, experts)}
"""Templates that show one thing, by their titles, in the order in which they came."""


def other_text(title: str, info: dict[str, Any]) -> str:
    """The text of one of ``OTHERS``."""
    return workflow.to_text(OTHERS[title].build(info, values_of(OTHERS[title].DESCRIPTION)))


CARD = (512, 288)
SHORT_TITLES = {
    "train_then_test": "Train, then test: the demo", "recipe_1_ink_and_lore": "Recipe 1: Ink & Lore", "recipe_2_style_guide":
    "Recipe 2: Style guide", "recipe_3_hosted_trainer": "Recipe 3: Hosted trainer", "recipe_4_real_life_face":
    "Recipe 4: Real-life face", "recipe_5_sdxl_subject": "Recipe 5: SDXL subject", **{title: title for title in OTHERS},
}  # fmt: skip


def card(title: str, seed: int) -> Image.Image:
    """A picture for the list of templates: pictures on the left, a grid of epochs and strengths on the right, the title below."""
    stream = random.Random(seed)
    hue = stream.random()
    picture = Image.new("RGB", CARD, _colour(hue, 0.35, 0.16))
    draw = ImageDraw.Draw(picture)
    for i in range(6):
        x, y = 36 + 62 * (i % 2), 28 + 62 * (i // 2)
        draw.rounded_rectangle((x, y, x + 52, y + 52), 6, fill=_colour(hue + 0.12 * i, 0.45, 0.75))
        draw.ellipse((x + 14, y + 12, x + 38, y + 36), fill=_colour(hue + 0.12 * i + 0.5, 0.5, 0.9))
    draw.line((176, 118, 214, 118), fill="white", width=4)
    draw.polygon(((214, 108), (230, 118), (214, 128)), fill="white")
    for row in range(3):
        for column in range(5):
            x, y = 254 + 48 * column, 28 + 62 * row
            strength = (column / 4) * (0.4 + 0.3 * row)
            draw.rounded_rectangle(
                (x, y, x + 40, y + 52), 5, fill=_colour(hue + 0.5, 0.15 + 0.5 * strength, 0.4 + 0.4 * strength)
            )
    draw.text((CARD[0] / 2, 250), title, fill="white", anchor="mm", font=ImageFont.load_default(26))
    return picture


def _place(path: Path) -> tuple[int, Path]:
    titles = list(OTHERS)
    return titles.index(path.stem) + 1 if path.stem in titles else 0, path


def _colour(hue: float, saturation: float, value: float) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def test_write(comfyui: object) -> None:
    for name, text in texts(support.host("new").info):
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
    for title in OTHERS:
        (FOLDER / f"{title}.json").write_text(other_text(title, support.host("new").info), encoding="utf-8")
    # The colours go by the order, in which those that came later are the last.
    for seed, path in enumerate(sorted(FOLDER.glob("*.json"), key=_place)):
        card(SHORT_TITLES.get(path.stem, path.stem[3:]), seed).save(path.with_suffix(".jpg"), quality=80)
