"""AutoCaption inside ComfyUI, on files."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_atelier.tests.training.captioning import tiny_blip
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from PIL import Image

WIDGETS = {
    "captioner": "file name", "mode": "fill missing", "pattern": "openmoji emoji, {name}", "trigger": "", "prefix": "",
    "prompt": "", "beams": 2, "min_length": 3, "max_length": 8, "batch_size": 2,
}  # fmt: skip


@pytest.fixture
def node(comfyui):
    from lora_atelier.nodes.auto_caption import AutoCaption

    return AutoCaption


@pytest.fixture
def models(comfyui, tmp_path, monkeypatch):
    """The host's models folder, in this test's own place."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    return tmp_path / "models" / "captioners"


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("cat-face", "crab", "hot-dog"):
        Image.effect_noise((40, 40), 50).convert("RGB").save(folder / f"{name}.png")
    return Dataset(scan(folder, SubsetConfig("input/set")))


def test_every_widget_has_a_tooltip_and_a_plain_name(node):
    schema = node.GET_SCHEMA()
    assert (schema.node_id, schema.display_name, schema.category) == ("AutoCaption", "Auto Caption", "LoRA Atelier")
    assert all(len(entry.tooltip) > 20 for entry in [*schema.inputs, *schema.outputs])


def test_file_names_become_captions(node, models, dataset):
    output = node.execute(dataset, **WIDGETS)
    captions = [sample.caption for sample in output.result[0].samples]
    assert captions == ["openmoji emoji, cat face", "openmoji emoji, crab", "openmoji emoji, hot dog"]
    assert output.ui["text"][0].startswith("3 captions written, 0 kept\ncat-face.png: openmoji emoji, cat face\n")
    again = node.execute(dataset, **WIDGETS)
    assert again.result[0] == output.result[0] and "nothing to write, 3 captions kept" in again.ui["text"][0]


def test_a_model_describes_the_pictures(node, models, dataset):
    import torch

    tiny_blip.build_blip(models / "tiny")
    assert node.define_schema().inputs[1].options == ["file name", "tiny"]
    with torch.inference_mode():
        output = node.execute(dataset, **{**WIDGETS, "captioner": "tiny", "trigger": "ohwx", "prompt": "a photo of"})
    for sample in output.result[0].samples:
        assert sample.caption.startswith("ohwx, a photo of")
        assert sample.path.with_suffix(".txt").read_text(encoding="utf-8") == f"{sample.caption}\n"


def test_cancel_keeps_what_is_written(node, models, dataset):
    """The person presses cancel before the first batch is done; the host raises its own interrupt after it."""
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            node.execute(dataset, **WIDGETS)
    finally:
        management.interrupt_current_processing(False)
    folder = next(dataset.samples).path.parent
    assert sorted(path.name for path in folder.glob("*.txt")) == ["cat-face.txt", "crab.txt"]


def test_a_captioner_that_is_not_there_is_named(node, models, dataset):
    message = node.validate_inputs(captioner="blip-large")
    assert isinstance(message, str) and "captioner: 'blip-large' is not in" in message and str(models) in message
    assert node.validate_inputs(captioner="file name") is True and node.validate_inputs() is True
    with pytest.raises(AtelierError, match="captioner: 'blip-large'"):
        node.execute(dataset, **{**WIDGETS, "captioner": "blip-large"})


@pytest.mark.parametrize(
    ("widget", "value", "message"),
    [("pattern", "{nmae}", "pattern: {nmae}"), ("max_length", 1, "max length: 1")],
)
def test_a_widget_that_cannot_work_is_named_and_nothing_is_written(node, models, dataset, widget, value, message):
    with pytest.raises(AtelierError, match=message):
        node.execute(dataset, **{**WIDGETS, widget: value})
    assert not list(next(dataset.samples).path.parent.glob("*.txt"))


def test_the_help_page_names_every_widget(node, root: Path):
    page = (root / "js" / "docs" / "AutoCaption.md").read_text(encoding="utf-8")
    assert [entry.id for entry in node.GET_SCHEMA().inputs if f"`{entry.id}`" not in page] == []
