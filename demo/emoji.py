"""The pictures the demo model is trained on: emoji of four openly licensed sets, drawn from their SVG sources.

The sets are npm packages of one shape: ``icons.json`` holds one SVG body per slug, so that the same concept (``cat-face``)
exists in several drawing styles. OpenMoji is deliberately not among them: its black outlines are the style the demo's LoRA
learns afterwards.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BASE_SETS = ("noto", "twemoji", "fluent-emoji-flat", "emojione")
SET_TITLES = {"noto": "noto", "twemoji": "twemoji", "fluent-emoji-flat": "fluent", "emojione": "emojione"}
CONCEPTS = tuple(Path(__file__).with_name("concepts.txt").read_text(encoding="utf-8").split())
"""Animals, plants and food with a shape of their own, which nearly all sets draw."""


class EmojiSet:
    """One unpacked ``@iconify-json/<name>`` package under ``<root>/node_modules``."""

    def __init__(self, root: Path, name: str):
        folder = root / "node_modules" / "@iconify-json" / name
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        self.name = name
        self.bodies: dict[str, dict[str, Any]] = icons["icons"]
        self.size: tuple[int, int] = (icons.get("width", 16), icons.get("height", 16))

    def svg(self, slug: str, line_width: float = 0.0, view: str = "") -> str:
        """The picture's source; ``line_width``, a share of its width, draws every shape with a black line around it, and
        ``view`` (an SVG transform around the middle, in units of the width) places it otherwise."""
        icon = self.bodies[slug]
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        left, top = icon.get("left", 0), icon.get("top", 0)
        body = icon["body"]
        if line_width:
            body = f'<g stroke="#000" stroke-width="{line_width * width:.3f}" stroke-linejoin="round">{body}</g>'
        if view:
            x, y = left + width / 2, top + height / 2
            around = f"translate({x} {y}) scale({width}) {view} scale({1 / width}) translate({-x} {-y})"
            body = f'<g transform="{around}">{body}</g>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{body}</svg>'
        )


def random_view(rng: np.random.Generator) -> str:
    """An SVG transform around the middle: smaller, shifted, turned a little, mirrored half of the time."""
    size, aspect = rng.uniform(0.72, 1.0), rng.uniform(0.94, 1.06)
    room = (1.06 - size) / 2
    x, y, turn = rng.uniform(-room, room), rng.uniform(-room, room), rng.uniform(-12, 12)
    return f"translate({x:.4f} {y:.4f}) rotate({turn:.2f}) scale({rng.choice([-1, 1]) * size * aspect:.4f} {size / aspect:.4f})"


def turn_hue(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same picture in other colours, (3, H, W) uint8: turned around the grey axis, so that white and black stay."""
    angle = rng.uniform(0, 2 * np.pi)
    diagonal, skew = np.full((3, 3), 1 / 3), np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotation = diagonal + np.cos(angle) * (np.eye(3) - diagonal) + np.sin(angle) * skew
    turned = np.tensordot(rotation, picture.astype(np.float32), axes=1)
    clipped: np.ndarray = np.clip(turned.round(), 0, 255).astype(np.uint8)
    return clipped


def draw_svg(svg: str, size: int, margin: float = 0.06) -> Image.Image:
    """Render one SVG on white, ``size`` px square, with an even margin (a share of the side)."""
    import resvg_py

    inner = round(size * (1 - 2 * margin))
    png = resvg_py.svg_to_bytes(svg_string=svg, width=inner, height=inner)
    icon = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    page = Image.new("RGB", (size, size), "white")
    page.paste(icon, ((size - icon.width) // 2, (size - icon.height) // 2), icon)
    return page


def concepts(sets: list[EmojiSet]) -> list[str]:
    """The slugs that the model learns, sorted; KeyError when no set draws one."""
    missing = [slug for slug in CONCEPTS if not any(slug in s.bodies for s in sets)]
    if missing:
        raise KeyError(f"no set has {', '.join(missing)}")
    return sorted(CONCEPTS)


def caption(set_name: str, slug: str) -> str:
    """The caption form the demo model knows: ``noto emoji, cat face``."""
    return f"{style(set_name)}, {slug.replace('-', ' ')}"


def style(set_name: str) -> str:
    """The part of a caption that names the set: ``noto emoji``."""
    return f"{SET_TITLES.get(set_name, set_name)} emoji"


def to_array(picture: Image.Image) -> np.ndarray:
    """(3, H, W) uint8."""
    array: np.ndarray = np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)
    return array
