"""The pictures the demo model is trained on: emoji of three openly licensed sets, drawn from their SVG sources.

The sets are npm packages of one shape: ``icons.json`` holds one SVG body per slug, so that the same concept (``cat-face``)
exists in several drawing styles. OpenMoji is deliberately not among them: its black outlines are the style the demo's LoRA
learns afterwards.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

BASE_SETS = ("noto", "twemoji", "fluent-emoji-flat")
SET_TITLES = {"noto": "noto", "twemoji": "twemoji", "fluent-emoji-flat": "fluent"}
CONCEPT_CATEGORIES = ("Animals & Nature", "Food & Drink")
# Left out: shapes that no style changes, tableware, near-duplicates of another concept, and heaps without an outline.
LEFT_OUT = tuple(
    "moon globe sun cloud star droplet comet rainbow wind cyclone fog snowflake fork spoon knife cooking glasses bottle nest "
    "service-dog guide-dog microbe butter salt ice-cube beans coral feather wing pouring canned box falafel flatbread tamale "
    "ginger garlic rice-ball oden dango sake steaming pot-of shallow shaved sheaf spider-web spiral paw-prints fallen herb "
    "bento curry cooked-rice rice-cracker two-hump front-facing water-buffalo ewe cricket mate leafy olive pea-pod "
    "wilted hyacinth lotus mosquito fly cockroach worm beverage takeout cut-of dumpling tumbler teacup worm brown-mushroom "
    "black-cat rat mammoth dodo ox boar poodle potted shamrock chestnut tropical-drink".split()
)


class EmojiSet:
    """One unpacked ``@iconify-json/<name>`` package under ``<root>/node_modules``."""

    def __init__(self, root: Path, name: str):
        folder = root / "node_modules" / "@iconify-json" / name
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        self.name = name
        self.bodies: dict[str, dict] = icons["icons"]
        self.size: tuple[int, int] = (icons.get("width", 16), icons.get("height", 16))
        self.categories: dict[str, list[str]] = metadata.get("categories", {})

    def svg(self, slug: str) -> str:
        icon = self.bodies[slug]
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        left, top = icon.get("left", 0), icon.get("top", 0)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


def draw_svg(svg: str, size: int, margin: float = 0.06) -> Image.Image:
    """Render one SVG on white, ``size`` px square, with an even margin (a share of the side)."""
    import resvg_py

    inner = round(size * (1 - 2 * margin))
    png = resvg_py.svg_to_bytes(svg_string=svg, width=inner, height=inner)
    icon = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    page = Image.new("RGB", (size, size), "white")
    page.paste(icon, ((size - icon.width) // 2, (size - icon.height) // 2), icon)
    return page


def concepts(sets: list[EmojiSet], reference: EmojiSet) -> list[str]:
    """Slugs of the chosen categories that every set has, sorted."""
    wanted = {slug for category in CONCEPT_CATEGORIES for slug in reference.categories.get(category, [])}
    common = set.intersection(*(set(s.bodies) for s in sets)) & wanted
    return sorted(slug for slug in common if not any(word == slug or (len(word) > 3 and word in slug) for word in LEFT_OUT))


def caption(set_name: str, slug: str) -> str:
    """The caption form the demo model knows: ``noto emoji, cat face``."""
    return f"{SET_TITLES.get(set_name, set_name)} emoji, {slug.replace('-', ' ')}"


def to_array(picture: Image.Image) -> np.ndarray:
    """(3, H, W) uint8."""
    return np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)
