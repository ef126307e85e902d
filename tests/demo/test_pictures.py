"""The demo's dataset is drawn from the package's own SVG files, once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lora_atelier.demo import emoji, pictures
from PIL import Image

HELD_OUT = {
    "red-apple", "owl", "fox", "octopus", "strawberry", "pizza", "pig-face", "frog", "cactus", "tomato", "eggplant",
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "openmoji"
    assert pictures.draw_dataset(folder) == 24
    return folder


def test_every_picture_has_black_outlines_on_white(dataset: Path) -> None:
    assert {file.stem for file in dataset.iterdir()} == set(pictures.CODE_POINTS)
    for file in dataset.iterdir():
        with Image.open(file) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (128, 128)), file.name
            values = np.asarray(picture.convert("L"))
        edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        assert edge.min() == 255, file.name
        assert (values < 40).mean() > 0.02, f"{file.name} has hardly any black"


def test_what_is_there_stays(dataset: Path) -> None:
    (dataset / "crab.png").write_bytes(b"mine")
    (dataset / "fish.png").unlink()
    assert pictures.draw_dataset(dataset) == 1
    assert (dataset / "crab.png").read_bytes() == b"mine"


def test_the_demo_model_knows_the_concepts() -> None:
    assert len(pictures.CODE_POINTS) == 24
    assert set(pictures.CODE_POINTS) <= set(emoji.CONCEPTS)


def test_the_grid_asks_for_concepts_that_were_not_trained(root: Path) -> None:
    assert not HELD_OUT & set(pictures.CODE_POINTS)
    workflow = json.loads((root / "workflows" / "train_then_test.json").read_text(encoding="utf-8"))
    grid = next(node for node in workflow["nodes"] if node["type"] == "EpochWeightGrid")
    prompts = next(value for value in grid["widgets_values"] if isinstance(value, str) and "emoji" in value)
    asked = {line.rpartition(",")[2].strip().replace(" ", "-") for line in prompts.splitlines() if line.strip()}
    assert asked and asked <= set(emoji.CONCEPTS)
    assert not asked & set(pictures.CODE_POINTS)
