"""LoadDataset inside ComfyUI: the list of folders, messages for what is missing, the preview, and when it runs again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lora_atelier.training.errors import AtelierError
from PIL import Image

WIDGETS = {
    "resolution": 128, "batch_size": 4, "repeats": 0, "buckets": True, "bucket_step": 64, "crop": "center",
    "caption_extension": ".txt",
}  # fmt: skip


@pytest.fixture
def node(comfyui):
    from lora_atelier.nodes.load_dataset import LoadDataset

    return LoadDataset


@pytest.fixture
def folder(comfyui, tmp_path, monkeypatch):
    """``input/shapes`` with three pictures; the host's folders lie in this test's own place."""
    import folder_paths

    for name in ("input", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    folder = tmp_path / "input" / "shapes"
    folder.mkdir()
    for name, size in (("red square", (64, 64)), ("tall", (64, 128)), ("wide", (300, 150))):
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
    return folder


def test_every_widget_has_a_tooltip_and_a_plain_name(node):
    schema = node.GET_SCHEMA()
    assert (schema.node_id, schema.display_name, schema.category) == ("LoadDataset", "Load Dataset", "LoRA Atelier")
    assert all(len(entry.tooltip) > 20 for entry in [*schema.inputs, *schema.outputs])


def test_the_list_holds_the_folders_with_pictures(node, folder):
    (folder.parent / "empty").mkdir()
    assert node.define_schema().inputs[0].options == ["input/shapes"]


def test_an_empty_installation_says_what_to_do(node, folder):
    for path in folder.iterdir():
        path.unlink()
    (choice,) = node.define_schema().inputs[0].options
    message = node.validate_inputs(folder=choice)
    assert isinstance(message, str) and message.startswith("folder: drop your pictures") and str(folder.parent) in message


def test_the_dataset_and_its_preview(node, folder):
    (folder / "tall.txt").write_text("a tall one")
    output = node.execute("input/shapes", **WIDGETS)
    dataset = output.result[0]
    assert [(s.path.name, s.caption) for s in dataset.samples] == [
        ("red square.png", None), ("tall.png", "a tall one"), ("wide.png", None),
    ]  # fmt: skip
    (text,) = output.ui["text"]
    assert "input/shapes: 3 pictures x 1" in text and "2 without caption" in text
    assert "| 128 x 128 | 1 | 1 | 1 | 1 |\n" in text and "3 steps an epoch" in text
    sizes = []
    for image in output.ui["thumbnails"]:
        assert image["type"] == "temp"
        with Image.open(folder.parent.parent / "temp" / image["subfolder"] / image["filename"]) as thumbnail:
            sizes.append(thumbnail.size)
    # Buckets 128 x 128, 64 x 192 or 64 x 256, and their transposes; 2:1 lies between 1:1 and 3:1, nearer to 3:1.
    assert sizes == [(128, 128), (64, 192), (192, 64)]


def test_at_most_24_thumbnails(node, folder):
    for i in range(30):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(folder / f"{i}.png")
    assert len(node.execute("input/shapes", **WIDGETS).ui["thumbnails"]) == 24


def test_datasets_chain(node, folder):
    first = node.execute("input/shapes", **WIDGETS).result[0]
    both = node.execute("input/shapes", **{**WIDGETS, "resolution": 256}, dataset=first).result[0]
    assert [subset.config.resolution for subset in both.subsets] == [128, 256]


def test_it_runs_again_exactly_when_the_folder_changes(node, folder):
    def seen():
        return node.fingerprint_inputs(folder="input/shapes", **WIDGETS, dataset=None)

    first = seen()
    assert seen() == first
    (folder / "tall.txt").write_text("a tall one")
    second = seen()
    assert second != first
    (folder / "tall.png").unlink()
    assert seen() not in (first, second)
    for path in folder.iterdir():
        path.unlink()
    assert "has no pictures" in seen()


@pytest.mark.parametrize("name", ["input/gone", "input/../..", "/etc", "elsewhere/x", ""])
def test_a_folder_that_is_not_there_is_named_before_anything_runs(node, folder, name):
    message = node.validate_inputs(folder=name)
    assert isinstance(message, str) and message.startswith("folder: ") and repr(name) in message
    with pytest.raises(AtelierError, match="folder: "):
        node.execute(name, **WIDGETS)


def test_a_good_folder_and_a_linked_one_are_valid(node, folder):
    assert node.validate_inputs(folder="input/shapes") is True
    assert node.validate_inputs() is True


@pytest.mark.parametrize(
    ("widget", "value", "message"),
    [
        ("resolution", 100, "resolution: 100 is not a multiple"),
        ("bucket_step", 12, "bucket step: 12"),
        ("caption_extension", "../x", "caption extension: '../x'"),
        ("caption_extension", "txt", "caption extension: 'txt'"),
        ("caption_extension", ".PNG", "caption extension: '.PNG' files are no caption files"),
        ("caption_extension", ".mask.png", "caption extension: '.mask.png' files are no caption files"),
        ("caption_extension", ".jsonl", "caption extension: '.jsonl' files are no caption files"),
    ],
)
def test_a_widget_that_cannot_work_is_named(node, folder, widget, value, message):
    with pytest.raises(AtelierError, match=message):
        node.execute("input/shapes", **{**WIDGETS, widget: value})


def test_a_broken_picture_is_named_however_many_there_are(node, folder):
    for i in range(30):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(folder / f"{i}.png")
    (folder / "zz.png").write_bytes((folder / "wide.png").read_bytes()[:-30])
    with pytest.raises(AtelierError, match=r"zz\.png: this picture cannot be read"):
        node.execute("input/shapes", **WIDGETS)


def test_the_help_page_names_every_widget(node, root: Path):
    page = (root / "js" / "docs" / "LoadDataset.md").read_text(encoding="utf-8")
    assert [entry.id for entry in node.GET_SCHEMA().inputs if f"`{entry.id}`" not in page] == []


def test_later_widgets_stand_behind_the_first_ones_and_may_be_missing(node, folder):
    """The order of widgets is how saved workflows store their values, and an older prompt doesn't name the later ones."""
    names = [entry.id for entry in node.GET_SCHEMA().inputs]
    assert names[: len(WIDGETS) + 2] == ["folder", *WIDGETS, "dataset"]
    assert all(entry.optional for entry in node.GET_SCHEMA().inputs[len(WIDGETS) + 1 :])


def test_what_is_rarely_needed_is_folded_away(node, folder):
    info = node.GET_NODE_INFO_V1()["input"]
    inputs = {**info["required"], **info["optional"]}
    shown = [name for name, spec in inputs.items() if not spec[1].get("advanced")]
    assert shown == [
        "folder", "resolution", "batch_size", "repeats", "buckets", "crop", "dataset", "role", "flip", "captions", "masks",
    ]  # fmt: skip


OLD_HOST = """
import sys
sys.path.insert(0, sys.argv[1])
from comfy_api.latest import io
import importlib.util
spec = importlib.util.spec_from_file_location("io_types", sys.argv[2])
io_types = importlib.util.module_from_spec(spec); spec.loader.exec_module(io_types)
kinds = [io.Int.Input("a", default=1), io.Boolean.Input("b"), io.String.Input("c", multiline=True), io.Float.Input("d"),
         io.Combo.Input("e", options=["x"]), io.Int.Input("f")]
assert [entry.as_dict().get("advanced") for entry in io_types.folded(kinds, "abcde")] == [True] * 5 + [None]
"""


def test_the_oldest_host_sends_the_mark_as_well(comfyui_old, root):
    subprocess.run([sys.executable, "-c", OLD_HOST, str(comfyui_old), str(root / "nodes" / "io_types.py")], check=True)


def test_the_widgets_defaults_are_those_of_the_settings(node, folder):
    from lora_atelier.training.config import SubsetConfig

    plain = SubsetConfig("input/shapes")
    for entry in node.GET_SCHEMA().inputs[1:]:
        if hasattr(entry, "default"):
            assert entry.default == getattr(plain, entry.id), entry.id


def test_roles_captions_and_remarks_reach_the_node(node, folder):
    output = node.execute(
        "input/shapes", **WIDGETS, role="regularisation", captions=False, class_caption="a shape", loss_weight=0.5, flip=True
    )
    (subset,) = output.result[0].subsets
    assert (subset.config.role, subset.config.loss_weight, subset.config.flip) == ("regularisation", 0.5, True)
    assert {sample.caption for sample in subset.samples} == {"a shape"}
    (text,) = output.ui["text"]
    assert "no training pictures yet: connect this node" in text
    assert "Note: 2 pictures smaller than the bucket, enlarged at most 2.0 times." in text
    assert [row["name"] for row in output.ui["pictures"]] == ["red square.png", "tall.png", "wide.png"]
    both = node.execute("input/shapes", **WIDGETS, dataset=output.result[0])
    assert "no picture is left" not in both.ui["text"][0] and "| 1 | regularisation | 128 x 128 |" in both.ui["text"][0]


def test_progress_is_shown_and_a_cancel_ends_it_between_two_pictures(node, folder, monkeypatch):
    import comfy.model_management
    import comfy.utils

    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: shown.append((value, total)))
    node.execute("input/shapes", **WIDGETS)
    # The host leaves out steps that follow the last one too soon.
    assert shown[0] == (1, 6) and shown[-1] == (6, 6) and shown == sorted(shown)
    shown.clear()
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            node.execute("input/shapes", **WIDGETS)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert shown == [(1, 6)]
