"""AutoCaption inside ComfyUI, on files."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from lora_atelier.tests.training.captioning import tiny_blip, tiny_tagger
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
    assert output.ui["text"][0].startswith(
        "3 captions written, 0 kept\n\n| picture | caption |\n| --- | --- |\n| cat-face.png | openmoji emoji, cat face |\n"
    )
    again = node.execute(dataset, **WIDGETS)
    assert again.result[0] == output.result[0] and "nothing to write, 3 captions kept" in again.ui["text"][0]


def test_regularisation_pictures_are_left_alone_until_the_widget_says_otherwise(node, models, dataset):
    folder = next(iter(dataset.samples)).path.parent
    prior = Dataset(scan(folder, SubsetConfig("input/set", role="regularisation")))
    output = node.execute(prior, **{**WIDGETS, "captioner": "a model that is not here"})
    assert "Note: 3 regularisation pictures left alone" in output.ui["text"][0] and not list(folder.glob("*.txt"))
    node.execute(prior, **WIDGETS, regularisation=True)
    assert len(list(folder.glob("*.txt"))) == 3


def test_a_model_describes_the_pictures(node, models, dataset):
    import torch

    tiny_blip.build_blip(models / "tiny")
    assert node.define_schema().inputs[1].options == ["file name", "existing captions", "connected clip", "tiny"]
    with torch.inference_mode():
        output = node.execute(dataset, **{**WIDGETS, "captioner": "tiny", "trigger": "ohwx", "prompt": "a photo of"})
    for sample in output.result[0].samples:
        assert sample.caption.startswith("ohwx, a photo of")
        assert sample.path.with_suffix(".txt").read_text(encoding="utf-8") == f"{sample.caption}\n"


def test_cancel_keeps_what_is_written(node, models, dataset):
    """The person sees the third picture and presses cancel."""
    import comfy.model_management as management
    import comfy.utils

    shown = []

    def bar(value, total, preview, **more):
        shown.append((value, total, preview[1].size))
        management.interrupt_current_processing(value == 2)

    tiny_blip.build_blip(models / "tiny")
    earlier = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(bar)
    try:
        with pytest.raises(management.InterruptProcessingException):
            # The prompt is part of the caption: on one noise in twenty, random weights have no words of their own to be written.
            node.execute(dataset, **{**WIDGETS, "captioner": "tiny", "prompt": "a photo of"})
    finally:
        comfy.utils.set_progress_bar_global_hook(earlier)
        management.interrupt_current_processing(False)
    folder = next(iter(dataset.samples)).path.parent
    assert sorted(path.name for path in folder.glob("*.txt")) == ["cat-face.txt", "crab.txt"]
    assert shown == [(0, 3, (40, 40)), (2, 3, (40, 40))]


def test_cancel_inside_a_caption_keeps_the_captions_before_it(node, models, dataset):
    """The person presses cancel while the second picture's third word is written."""
    import comfy.model_management as management
    from torch.nn.modules.module import register_module_forward_hook

    words = []

    def word(module, *_):
        if type(module).__name__ == "BlipTextLMHeadModel":
            words.append(sum(1 for _ in folder.glob("*.txt")))
            management.interrupt_current_processing(words.count(1) == 3)

    tiny_blip.build_blip(models / "tiny")
    folder = next(iter(dataset.samples)).path.parent
    handle = register_module_forward_hook(word)
    try:
        with pytest.raises(management.InterruptProcessingException):
            # The prompt is part of the caption, so that random weights cannot leave it empty.
            widgets = {**WIDGETS, "captioner": "tiny", "batch_size": 1, "min_length": 8, "prompt": "a photo of"}
            node.execute(dataset, **widgets)
    finally:
        handle.remove()
        management.interrupt_current_processing(False)
    assert words == [0] * 8 + [1] * 3 and [path.name for path in folder.glob("*.txt")] == ["cat-face.txt"]


def test_a_captioner_that_is_not_there_is_named(node, models, dataset):
    message = node.validate_inputs(captioner="blip-large")
    assert isinstance(message, str) and "captioner: 'blip-large' is not in" in message and str(models) in message
    assert node.validate_inputs(captioner="file name") is True and node.validate_inputs() is True
    assert node.validate_inputs(captioner="blip-large", download=True) is True, "a download takes its place"
    with pytest.raises(AtelierError, match="captioner: 'blip-large'"):
        node.execute(dataset, **{**WIDGETS, "captioner": "blip-large"})


@pytest.mark.parametrize(
    ("widget", "value", "message"),
    [
        ("pattern", "{nmae}", "pattern: {nmae}"),
        ("max_length", 1, "max length: 1"),
        ("replace", "cat", "replace: line 1"),
        ("general_threshold", 1.5, "general_threshold: 1.5"),
        ("character_threshold", -1, "character_threshold: -1"),
        ("order", "by length", "order: 'by length'"),
        ("captioner", "connected clip", "captioner: 'connected clip' needs a language model at the input clip"),
        ("captioner", "existing captions", "mode: 'fill missing' leaves existing captions as they are"),
        ("download", True, "hub_id: '' is no model's name"),
    ],
)
def test_a_widget_that_cannot_work_is_named_and_nothing_is_written(node, models, dataset, widget, value, message):
    with pytest.raises(AtelierError, match=message):
        node.execute(dataset, **{**WIDGETS, widget: value})
    assert not list(next(iter(dataset.samples)).path.parent.glob("*.txt"))


def test_the_help_page_names_every_widget(node, root: Path):
    page = (root / "js" / "docs" / "AutoCaption.md").read_text(encoding="utf-8")
    assert [entry.id for entry in node.GET_SCHEMA().inputs if f"`{entry.id}`" not in page] == []


def test_inputs_that_came_later_stand_behind_the_first_and_are_optional(node):
    """A workflow saved before keeps its values in their places, and a prompt without the new inputs is accepted."""
    inputs = node.GET_SCHEMA().inputs
    assert [entry.id for entry in inputs[:11]] == ["dataset", *WIDGETS]
    assert all(entry.optional for entry in inputs[11:]) and not any(entry.optional for entry in inputs[:11])


def test_what_is_rarely_needed_is_folded_away(node):
    info = node.GET_NODE_INFO_V1()["input"]
    inputs = {**info["required"], **info["optional"]}
    shown = [name for name, spec in inputs.items() if not spec[1].get("advanced")]
    assert shown == [
        "dataset", "captioner", "mode", "pattern", "trigger", "prefix", "prompt", "remove_tags", "dry_run", "clip", "pause",
    ]  # fmt: skip


def test_text_work_on_existing_captions(node, models, dataset):
    """Recipe R3's tag work, through the widgets."""
    folder = next(iter(dataset.samples)).path.parent
    (folder / "crab.txt").write_text("crab, red_shell, ^_^, crab, a sea")
    (folder / "hot-dog.txt").write_text("bun, crab")
    widgets = {
        **WIDGETS, "captioner": "existing captions", "mode": "overwrite", "trigger": "ohwx", "suffix": ", flat",
        "replace": "a -> the", "remove_tags": "red *", "deduplicate": True,
        "order": "by frequency", "underscores": "spaces everywhere",
    }  # fmt: skip
    preview = node.execute(dataset, **widgets, dry_run=True).ui["text"][0]
    assert "| crab.png | crab, red_shell, ^_^, crab, a sea | ohwx, crab, ^_^, the sea, flat |" in preview
    assert (folder / "crab.txt").read_text() == "crab, red_shell, ^_^, crab, a sea"
    output = node.execute(dataset, **widgets)
    assert [s.caption for s in output.result[0].samples] == [None, "ohwx, crab, ^_^, the sea, flat", "ohwx, crab, bun, flat"]
    assert "| crab | 2 |" in output.ui["text"][0]


def test_without_the_choice_nothing_is_ever_fetched(node, models, dataset, monkeypatch):
    """Every captioner that reads a folder, with a hub id typed in but download off: no connection is even tried."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tiny_blip.build_blip(models / "tiny")
    node.execute(dataset, **{**WIDGETS, "captioner": "tiny"}, hub_id="Salesforce/blip-image-captioning-base", download=False)
    tiny_blip.build_blip(models / "half")
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "processor_config.json"):
        (models / "half" / name).unlink(missing_ok=True)
    with pytest.raises(AtelierError, match="captioner: half cannot be loaded"):
        node.execute(dataset, **{**WIDGETS, "captioner": "half", "mode": "overwrite"}, hub_id="owner/model", download=False)
    assert sorted(path.name for path in models.iterdir()) == ["half", "tiny"]


def test_when_download_is_chosen_and_fails_one_sentence_says_so(node, models, dataset, monkeypatch):
    import socket

    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(AtelierError, match=r"download: owner/model could not be fetched from the hub .* put the model's folder"):
        node.execute(dataset, **WIDGETS, hub_id="owner/model", download=True)
    assert not list(next(iter(dataset.samples)).path.parent.glob("*.txt"))
    assert node.define_schema().inputs[1].options == ["file name", "existing captions", "connected clip"]


def test_a_model_is_gone_afterwards(node, models, dataset):
    import gc

    from transformers import BlipForConditionalGeneration

    tiny_blip.build_blip(models / "tiny")
    gc.collect()
    before = sum(type(thing) is BlipForConditionalGeneration for thing in gc.get_objects())
    node.execute(dataset, **{**WIDGETS, "captioner": "tiny"}, device="cpu")
    assert sum(type(thing) is BlipForConditionalGeneration for thing in gc.get_objects()) == before


def test_a_tagger_through_the_widgets(node, models, dataset):
    """Underscores become spaces in tags without being asked, and the blacklist is heard."""
    folder = tiny_tagger.build_tagger(models / "wd").parent
    assert node.define_schema().inputs[1].options[-1] == "wd" and folder == models
    for sample in dataset.samples:
        Image.new("RGB", (8, 8), (255, 204, 0)).save(sample.path)
    widgets = {**WIDGETS, "captioner": "wd", "trigger": "ohwx", "rating": True, "blacklist": "red thing"}
    captions = [sample.caption for sample in node.execute(dataset, **widgets).result[0].samples]
    assert captions == ["ohwx, sensitive, green thing"] * 3
    kept = node.execute(
        dataset, **{**widgets, "mode": "overwrite", "underscores": "keep", "general_threshold": 0.9, "blacklist": ""}
    )
    assert [sample.caption for sample in kept.result[0].samples] == ["ohwx, sensitive, red_thing"] * 3


def test_a_threshold_that_no_tag_reaches_is_said(node, models, dataset):
    tiny_tagger.build_tagger(models / "wd")
    text = node.execute(dataset, **{**WIDGETS, "captioner": "wd"}, general_threshold=1.0, character_threshold=1.0).ui["text"][0]
    assert "no words were found for cat-face.png, crab.png, hot-dog.png" in text and "lower general_threshold" in text


def test_a_run_waits_for_the_captions_to_be_read(node, models, dataset, monkeypatch):
    """What is edited meanwhile is what the next node gets, and a cancel ends the waiting and takes its line back."""
    from comfy import model_management
    from lora_atelier.training import host
    from lora_atelier.training.captioning import review

    found = []
    work = threading.Thread(target=lambda: found.append(node.execute(dataset, **WIDGETS, pause=True)))
    work.start()
    while not review.waiting():
        time.sleep(0.01)
    (waits,) = review.waiting()
    assert waits["told"]["counts"][0] == "3 captions written, 0 kept"
    assert review.again(waits["node"], "crab.png").result(20) == "openmoji emoji, crab"
    with pytest.raises(AtelierError, match="only: "):
        review.again(waits["node"], "nobody.png").result(20)
    first = next(iter(dataset.samples)).path
    first.with_suffix(".txt").write_text("by hand")
    assert review.go_on(waits["node"])
    work.join(20)
    assert next(iter(found[0].result[0].samples)).caption == "by hand"
    model_management.interrupt_current_processing(True)
    lines = []
    monkeypatch.setattr(host, "status_of", lambda node: lines.append)
    with pytest.raises(model_management.InterruptProcessingException):
        node.execute(dataset, **WIDGETS, pause=True)
    assert not review.waiting() and lines[0].startswith("waits for you") and lines[-1] == ""


def test_a_dry_run_waits_for_nobody(node, models, dataset):
    output = node.execute(dataset, **WIDGETS, pause=True, dry_run=True, only="crab.png")
    assert output.ui["asked"] == [["crab.png", "openmoji emoji, crab"]]
    assert "asked" not in node.execute(dataset, **WIDGETS).ui
