"""The words of the panels and nodes, in the files that ComfyUI serves for translating."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PHASES = {"preparing", "training", "sampling"}
"""Words that the server chooses."""
PANELS = (
    "recipe.js",
    "training.js",
    "runs.js",
    "lib/chart.js",
    "told.js",
    "lib/told.js",
    "presets.js",
    "captions.js",
    "upload.js",
    "lib/files.js",
    "lib/picture_tools.js",
    "lib/again.js",
    "review.js",
    "gallery.js",
    "settings.js",
    "lib/dialog.js",
    "lib/groups.js",
    "lib/moment.js",
    "lib/caption_filter.js",
)


@pytest.fixture(scope="module")
def words(root: Path) -> dict[str, str]:
    return json.loads((root / "locales" / "en" / "main.json").read_text(encoding="utf-8"))["loraAtelier"]


def test_every_word_that_a_panel_says_is_there(root: Path, words: dict[str, str]) -> None:
    sources = "\n".join((root / "js" / name).read_text(encoding="utf-8") for name in PANELS)
    mentioned = set(re.findall(r'"(\w+)"', sources))
    mentioned |= {f"{name}{end}" for name in mentioned for end in ("Help", "One")}
    said = set(re.findall(r'\b(?:text|button|field)\("(\w+)"', sources))
    said |= {f"{name}Help" for name in re.findall(r'\bbutton\("(\w+)"', sources)}
    assert said <= words.keys() <= mentioned | PHASES


def test_no_word_means_something_to_the_hosts_translator(words: dict[str, str]) -> None:
    """In its messages braces, @ and | have meanings of their own."""
    assert not [word for word in words.values() if re.search(r"[{}@|]", word)]


def node_kinds() -> list[type]:
    from lora_atelier.nodes import (
        auto_caption,
        configure_lora,
        dataset_from_nodes,
        epoch_weight_grid,
        load_dataset,
        render_regularisation,
        slider_dataset,
        train_lora,
    )

    return [
        load_dataset.LoadDataset, dataset_from_nodes.DatasetFromNodes, auto_caption.AutoCaption,
        render_regularisation.RenderRegularisation, slider_dataset.SliderDataset, configure_lora.ConfigureLoRA,
        train_lora.TrainLoRA, epoch_weight_grid.EpochWeightGrid,
    ]  # fmt: skip


def test_the_nodes_words_are_those_of_the_nodes(root: Path, comfyui: Path) -> None:
    schemas = [kind.define_schema() for kind in node_kinds()]
    listed = json.loads((root / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert listed == {s.node_id: {"display_name": s.display_name, "description": s.description} for s in schemas}


def test_what_is_counted_has_a_form_for_one(words: dict[str, str]) -> None:
    """ "1 pictures" is no English; where the number stands alone, or before what has no plural, one form is enough."""
    counted = {key for key, word in words.items() if re.search(r"\[count\] [a-z]+s\b", word)}
    assert counted and {f"{key}One" for key in counted} <= words.keys()
    assert not [key for key, word in words.items() if key.endswith("One") and "[count]" in word]
