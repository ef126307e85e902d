"""RenderRegularisation inside ComfyUI: folders, the dataset that comes out, messages, and when it runs again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.tests.training.conftest import load_model
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.errors import AtelierError

WIDGETS = {
    "folder": "input/reg/1_man", "prompts": "a man\n\na tall man\n", "negative": "", "count": 3, "width": 64, "height": 96,
    "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "seed": 7, "render_batch_size": 2, "resolution": 64,
    "batch_size": 2, "loss_weight": 0.5,
}  # fmt: skip


@pytest.fixture
def node(comfyui):
    from lora_atelier.nodes.render_regularisation import RenderRegularisation

    return RenderRegularisation


@pytest.fixture
def base(comfyui, tmp_path, monkeypatch):
    """The host's folders, in this test's own place."""
    import folder_paths

    for name in ("input", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="module")
def models(comfyui):
    """MODEL, CLIP and VAE as the stock loader gives them."""
    t = load_model("sd3")
    return t.model.patcher, t.text.clip, t.codec.vae


def execute(node, models, **changes):
    with torch.inference_mode():
        return node.execute(*models, **{**WIDGETS, **changes})


def test_every_widget_has_a_tooltip_and_a_plain_name(node):
    schema = node.GET_SCHEMA()
    assert (schema.node_id, schema.display_name) == ("RenderRegularisation", "Render Regularisation")
    assert schema.category == "LoRA Atelier"
    assert all(len(entry.tooltip) > 20 for entry in [*schema.inputs, *schema.outputs])


def test_the_help_page_names_every_widget(node, root: Path):
    page = (root / "js" / "docs" / "RenderRegularisation.md").read_text(encoding="utf-8")
    schema = node.GET_SCHEMA()
    said = [entry.id for entry in schema.inputs] + [entry.display_name for entry in schema.outputs]
    assert [name for name in said if f"`{name}`" not in page] == []


def test_one_graph_draws_the_set_and_trains_with_it(node, models, base):
    from lora_atelier.nodes.load_dataset import LoadDataset

    subject = base / "input" / "5_ohwx man"
    subject.mkdir()
    for i in range(3):
        noise_picture((64, 64), 30 + 9 * i, i).save(subject / f"{i}.png")
    training = LoadDataset.execute("input/5_ohwx man", 64, 1, 0, True, 32, "center", ".txt").result[0]
    output = execute(node, models, dataset=training)
    dataset, folder, pictures = output.result
    assert (folder, pictures) == ("input/reg/1_man", 3)
    assert sorted(p.name for p in (base / "input" / "reg" / "1_man").iterdir()) == [f"reg-0000{i}.png" for i in range(3)]
    first, prior = dataset.subsets
    assert first == training.subsets[0]
    config = prior.config
    assert (config.role, config.resolution, config.batch_size, config.loss_weight) == ("regularisation", 64, 2, 0.5)
    assert (config.folder, prior.repeats) == ("input/reg/1_man", 1)
    assert [(s.width, s.height, s.caption) for s in prior.samples] == [(64, 96, "man")] * 3
    assert [row.sightings for row in Plan(dataset, 0).bucket_table()] == [15, 15]
    (text,) = output.ui["text"]
    assert (
        text.startswith("input/reg/1_man: 3 pictures drawn, 0 there already\n")
        and "| 2 | regularisation | 64 x 64 | 3 | 15 | 8 | 1 |" in text
    )
    assert len(output.ui["thumbnails"]) == 3
    for image in output.ui["thumbnails"]:
        assert image["type"] == "temp" and (base / "temp" / image["subfolder"] / image["filename"]).is_file()


def test_the_second_time_nothing_is_drawn_and_load_dataset_finds_the_folder(node, models, base):
    from lora_atelier.nodes.load_dataset import LoadDataset

    def stamp(**changes):
        return node.fingerprint_inputs(**{**WIDGETS, **changes}, model=None, clip=None, vae=None)

    before = stamp()
    first = execute(node, models)
    assert stamp() == before
    assert "no training pictures yet" in first.ui["text"][0]
    again = execute(node, models)
    assert again.result == first.result and "0 pictures drawn, 3 there already" in again.ui["text"][0]
    assert LoadDataset.define_schema().inputs[0].options == ["input/reg", "input/reg/1_man"]
    (base / "input" / "reg" / "1_man" / "reg-00001.png").unlink()
    assert stamp() != before


def test_a_name_without_a_root_lies_in_input_and_other_pictures_count(node, models, base):
    folder = base / "input" / "reg" / "1_man"
    folder.mkdir(parents=True)
    noise_picture((64, 64), 50).save(folder / "mine.png")
    output = execute(node, models, folder=" reg/1_man/ ", count=2, class_caption="a person", write_captions=True)
    dataset, name, pictures = output.result
    assert (name, pictures) == ("input/reg/1_man", 3)
    assert "Note: 1 other picture in the folder taken as well." in output.ui["text"][0]
    captions = {s.path.name: s.caption for s in dataset.samples}
    assert captions == {"mine.png": "a person", "reg-00000.png": "a man", "reg-00001.png": "a tall man"}


@pytest.mark.parametrize(
    "name",
    ["", "  ", "input", "datasets/", "/etc/x", "../x", "input/../../x", "C:/x", "input\\x", "input/a\0b", "input/.hidden",
     "input/con", "reg/a:b", "reg/a?", "reg/1_man./x", "input/masks", "input/" + "x" * 101, "~/reg", "input/" + "🦊" * 60,
     "input/0_man"],
)  # fmt: skip
def test_a_folder_that_leads_elsewhere_is_named_before_anything_runs(node, models, base, name):
    before = sorted(base.rglob("*"))
    message = node.validate_inputs(folder=name)
    assert isinstance(message, str) and message.startswith("folder: ")
    with pytest.raises(AtelierError, match=r"^folder: "):
        execute(node, models, folder=name)
    assert sorted(base.rglob("*")) == before
    assert isinstance(node.fingerprint_inputs(**{**WIDGETS, "folder": name}), str)


def test_links_and_files_in_the_way_are_named(node, base):
    (base / "private").mkdir()
    (base / "input" / "out").symlink_to(base / "private")
    (base / "input" / "file").write_text("")
    assert "'out/1_man' is a link that leads out of input/" in node.validate_inputs(folder="out/1_man")
    assert "'file/1_man' is or goes through a file" in node.validate_inputs(folder="file/1_man")
    assert node.validate_inputs(folder="reg/1_man") is True and node.validate_inputs() is True
    assert node.validate_inputs(folder="datasets/men of 1900, (b&w)") is True


@pytest.mark.parametrize(
    ("widget", "value", "message"),
    [
        ("prompts", " \n ", "prompts: write at least one prompt"),
        ("count", 0, "count: 0"),
        ("width", 100, "width: 100 is not a multiple of 8"),
        ("sampler_name", "eular", "sampler_name: this ComfyUI has no 'eular'"),
        ("render_batch_size", 0, "render_batch_size: 0"),
        ("resolution", 100, "resolution: 100 is not a multiple"),
        ("batch_size", 0, "batch size: 0"),
        ("loss_weight", 0.0, "loss weight: 0"),
    ],
)
def test_a_widget_that_cannot_work_is_named_and_nothing_is_made(node, models, base, widget, value, message):
    with pytest.raises(AtelierError, match=f"^{message}"):
        execute(node, models, **{widget: value})
    assert not (base / "input" / "reg").exists()
