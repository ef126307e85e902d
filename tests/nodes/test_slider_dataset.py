"""SliderDataset inside ComfyUI: what stands in its help, and what it hands on and says."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.errors import AtelierError
from PIL import Image


@pytest.fixture
def node(comfyui):
    from lora_atelier.nodes.slider_dataset import SliderDataset

    return SliderDataset


def widgets(node, **changes):
    values = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs if entry.id != "dataset"}
    return {**values, **changes}


@pytest.fixture
def drawn(tmp_path):
    """Two pictures as Render Regularisation hands them on."""
    for i in range(2):
        Image.new("RGB", (64, 64), (90 * i, 20, 60)).save(tmp_path / f"{i}.png")
    config = SubsetConfig("input/slider/1_person", resolution=64, role="regularisation", loss_weight=0.5)
    return Dataset(scan.scan(tmp_path, config))


def test_every_input_has_a_tooltip_and_stands_in_the_help(node, root: Path):
    schema = node.GET_SCHEMA()
    assert all(len(entry.tooltip) > 10 for entry in [*schema.inputs, *schema.outputs])
    page = (root / "js" / "docs" / "SliderDataset.md").read_text(encoding="utf-8")
    assert [entry.id for entry in schema.inputs if f"`{entry.id}`" not in page] == []


def test_drawn_pictures_are_trained_on_and_what_is_learnt_is_said(node, drawn):
    output = node.execute(drawn, **widgets(node, preserve="male, female"))
    (subset,) = output.result[0].subsets
    assert (subset.config.role, subset.config.loss_weight, len(subset.samples)) == ("training", 0.5, 2)
    assert [sample.caption for sample in subset.samples] == ["male, a photo of a person"] * 2
    said = output.ui["text"][0]
    assert "from 'male, a photo of a very young person' (-1) to 'male, a photo of a very old person' (1), and 1 more" in said
    assert len(output.ui["thumbnails"]) == 2


def test_prompts_that_say_nothing_are_refused_by_their_widget(node, drawn):
    with pytest.raises(AtelierError, match="positive: write what the slider is drawn for"):
        node.execute(drawn, **widgets(node, positive=" \n"))
    with pytest.raises(AtelierError, match="2 pictures of input/slider/1_person without a picture from before"):
        node.execute(drawn, **widgets(node, source="pairs of pictures"))
