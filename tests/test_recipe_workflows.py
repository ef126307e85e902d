"""Five published recipes as shipped workflows: their values, and their authors' sums from the workflow's data on drawn pictures.

``test_recipe_runs.py`` and ``host/test_recipes.py`` train with them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo import workflow as canvas
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.augment import sighted_caption
from lora_atelier.training.dataset.plan import Plan, bucket_of
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import scan

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "workflows").glob("recipe_*.json"))
PRESETS = {
    "recipe_1_ink_and_lore": "R1 Ink & Lore (Flux style)",
    "recipe_2_style_guide": "R2 Style guide (SDXL)",
    "recipe_3_hosted_trainer": "R3 Hosted trainer (SD1.5)",
    "recipe_4_real_life_face": "R4 Real-life face (SD1.5)",
    "recipe_5_sdxl_subject": "R5 SDXL subject, Prodigy",
}
LOADERS = {"UNETLoader", "DualCLIPLoader", "VAELoader", "CheckpointLoaderSimple"}
# No captioner's weights are here; what the text work does to its words is the same.
BY_NAME = {("AutoCaption", "captioner"): "file name"}


@pytest.fixture
def base(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder around the host's ``input``, ``temp``, ``user`` and ``models``, all empty."""
    import folder_paths

    for name in ("input", "temp", "user"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    return tmp_path


@pytest.fixture
def nodes(base: Path) -> dict[str, Any]:
    from lora_atelier.nodes.auto_caption import AutoCaption
    from lora_atelier.nodes.load_dataset import LoadDataset

    return {"LoadDataset": LoadDataset, "AutoCaption": AutoCaption}


@pytest.fixture
def run(nodes: dict[str, Any]) -> Callable[..., Dataset]:
    """Runs a recipe's data nodes one by one, as the canvas would send them; what the last of them gives."""

    def give(stem: str, overrides: canvas.Overrides = BY_NAME) -> Dataset:
        info = {name: node.GET_NODE_INFO_V1() for name, node in nodes.items()}
        whole = workflow(stem)
        data = {**whole, "nodes": [node for node in whole["nodes"] if node["type"] in nodes]}
        prompt = canvas.to_prompt(data, info, overrides)
        results: dict[str, Any] = {}
        for key in sorted(prompt, key=int):
            node, inputs = nodes[prompt[key]["class_type"]], prompt[key]["inputs"]
            checks = {"captioner", "download"} if "captioner" in inputs else {"folder"}
            assert node.validate_inputs(**{name: inputs[name] for name in checks}) is True
            values = {name: results[v[0]].result[v[1]] if isinstance(v, list) else v for name, v in inputs.items()}
            results[key] = node.execute(**values)
        return results[max(results, key=int)].result[0]

    return give


def workflow(stem: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{stem}.json").read_text(encoding="utf-8"))


def stored(stem: str, kind: str) -> list[dict[str, Any]]:
    """The widgets of all nodes of a kind, by the names in the file."""
    return [canvas.named_values(node) for node in workflow(stem)["nodes"] if node["type"] == kind]


def source(stem: str, kind: str, socket: str) -> tuple[str, int]:
    """(class, id) of the node behind a socket of the only node of a kind."""
    graph = canvas.Graph(workflow(stem))
    (node,) = [node for node in graph.nodes.values() if node["type"] == kind]
    (link,) = [entry["link"] for entry in node["inputs"] if entry["name"] == socket]
    found = graph.source(link)
    assert found is not None
    return graph.nodes[found[0]]["type"], int(found[0])


def draw(folder: Path, sizes: Iterable[tuple[int, int]]) -> None:
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        noise_picture(size, 80, i).save(folder / f"portrait_{i:03}.png")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_before_the_folders_are_there_each_node_says_what_to_do(path: Path, nodes: dict[str, Any]) -> None:
    for widgets in stored(path.stem, "LoadDataset"):
        said = nodes["LoadDataset"].validate_inputs(folder=widgets["folder"])
        assert f"folder: {widgets['folder']!r} does not exist here" in said
    for widgets in stored(path.stem, "AutoCaption"):
        said = nodes["AutoCaption"].validate_inputs(captioner=widgets["captioner"])
        assert said is True or f"captioner: {widgets['captioner']!r} is not in" in said
        hub_id = widgets["hub_id"]
        assert not hub_id or (hub_id.replace("/", "--") == widgets["captioner"] and not widgets["download"])


def test_there_is_one_for_each_recipe() -> None:
    assert [path.stem for path in RECIPES] == list(PRESETS)


@pytest.mark.parametrize("stem", PRESETS)
def test_the_settings_are_those_of_the_preset(stem: str, comfyui: Path) -> None:
    from lora_atelier.nodes.configure_lora import ConfigureLoRA, build

    presets = json.loads((ROOT / "js" / "presets.json").read_text(encoding="utf-8"))
    (values,) = stored(stem, "ConfigureLoRA")
    assert values["preset"] == PRESETS[stem] and values["name"] != "my-lora"
    own = {name: value for name, value in values.items() if name not in ("preset", "name", "comment")}
    defaults = {entry.id: entry.default for entry in ConfigureLoRA.GET_SCHEMA().inputs if entry.id in own}
    assert own == {**defaults, **presets[PRESETS[stem]]}
    build(**values)


@pytest.mark.parametrize("stem", PRESETS)
def test_it_trains_and_compares_and_says_what_goes_where(stem: str) -> None:
    kinds = Counter(node["type"] for node in workflow(stem)["nodes"])
    assert all(kinds[kind] == 1 for kind in ("AutoCaption", "ConfigureLoRA", "TrainLoRA", "EpochWeightGrid"))
    assert source(stem, "EpochWeightGrid", "epochs")[0] == "TrainLoRA"
    told = " ".join(node["widgets_values"][0] for node in workflow(stem)["nodes"] if node["type"] == "MarkdownNote")
    folders = {widgets["folder"] for kind in ("LoadDataset", "RenderRegularisation") for widgets in stored(stem, kind)}
    for place in ("models/checkpoints", "models/diffusion_models", "models/text_encoders", "models/vae"):
        if ("UNETLoader" in kinds) != (place == "models/checkpoints"):
            folders.add(place)
    assert [folder for folder in sorted(folders) if f"`{folder}" not in told] == []
    assert PRESETS[stem].split(" (")[0].split(",")[0] in told, "where the values come from"


@pytest.mark.parametrize(
    ("stem", "loaders"),
    [
        ("recipe_1_ink_and_lore", {"UNETLoader": 2, "DualCLIPLoader": 1, "VAELoader": 1}),
        ("recipe_2_style_guide", {"CheckpointLoaderSimple": 1}),
        ("recipe_3_hosted_trainer", {"CheckpointLoaderSimple": 1}),
        ("recipe_4_real_life_face", {"CheckpointLoaderSimple": 1}),
        ("recipe_5_sdxl_subject", {"CheckpointLoaderSimple": 1}),
    ],
)
def test_models_come_from_the_loaders_of_their_family(stem: str, loaders: dict[str, int]) -> None:
    kinds = Counter(node["type"] for node in workflow(stem)["nodes"])
    assert {kind: kinds[kind] for kind in kinds if kind in LOADERS} == loaders
    trained, judged = source(stem, "TrainLoRA", "model"), source(stem, "EpochWeightGrid", "model")
    assert (trained != judged) == ("UNETLoader" in loaders), "only the first recipe is judged on another model"


def test_ink_and_lore_is_judged_by_epochs_among_which_is_step_1728() -> None:
    (config,), (train,), (grid,) = (
        stored("recipe_1_ink_and_lore", kind) for kind in ("ConfigureLoRA", "TrainLoRA", "EpochWeightGrid")
    )
    assert (config["epochs"], config["max_steps"], config["save_every"], train["preview_steps"]) == (63, 2000, 1, 0)
    assert grid["which_epochs"] == "every 9" and (54 % 9, 54 * 32) == (0, 1728)
    (loader,) = stored("recipe_1_ink_and_lore", "DualCLIPLoader")
    assert loader["type"] == "flux"
    assert {loader["weight_dtype"] for loader in stored("recipe_1_ink_and_lore", "UNETLoader")} == {"fp8_e4m3fn"}


@pytest.mark.parametrize(
    ("stem", "strengths"),
    [
        ("recipe_2_style_guide", "0.8, 0.9, 1.0"),
        ("recipe_3_hosted_trainer", "0.6, 0.8, 1.0"),
        ("recipe_4_real_life_face", "0.2-1(+0.2)"),
        ("recipe_5_sdxl_subject", "0.6, 0.8, 1.0"),
    ],
)
def test_every_file_is_judged_up_to_full_strength(stem: str, strengths: str) -> None:
    (grid,) = stored(stem, "EpochWeightGrid")
    assert (grid["which_epochs"], grid["strengths"]) == ("all", strengths)


def test_the_subjects_class_is_drawn_by_the_model_before_it_learns() -> None:
    stem = "recipe_5_sdxl_subject"
    (drawn,), (config,), (train,) = (stored(stem, kind) for kind in ("RenderRegularisation", "ConfigureLoRA", "TrainLoRA"))
    assert (drawn["folder"], drawn["prompts"], drawn["count"]) == ("input/reg/1_man", "a photo of a man", 25 * 30)
    assert (drawn["width"], drawn["height"], drawn["resolution"]) == (1024, 1024, 1024) and drawn["negative"]
    assert source(stem, "RenderRegularisation", "dataset")[0] == "AutoCaption"
    assert source(stem, "TrainLoRA", "dataset")[0] == "RenderRegularisation"
    assert source(stem, "RenderRegularisation", "model") == source(stem, "TrainLoRA", "model")
    assert "ohwx" in config["comment"] and train["preview_prompt"] == "ohwx, a photo of a man"


def test_the_hosted_trainers_loss_is_seen_as_a_curve() -> None:
    (train,) = stored("recipe_3_hosted_trainer", "TrainLoRA")
    assert (train["preview_width"], train["preview_height"]) == (512, 512) and train["preview_negative"]
    assert source("recipe_3_hosted_trainer", "LossGraphNode", "loss")[0] == "TrainLoRA"


def test_ink_and_lore(base: Path, run: Callable[..., Dataset]) -> None:
    folder = base / "input" / "ink-and-lore"
    draw(folder, [(60, 100)] * 2 + [(70, 90)] * 6 + [(64, 64)] * 2 + [(100, 60)] * 4)
    (folder / "portrait_000.txt").write_text("by hand", encoding="utf-8")
    dataset = run("recipe_1_ink_and_lore")
    plan = Plan(dataset, 1)
    steps = Counter(batch.subset for batch in plan.epoch_batches(0))
    assert [steps[i] for i in range(4)] == [4, 7, 7, 14] and plan.steps_per_epoch == 32
    assert plan.epochs_for(2000) == 63 and plan.locate(1728 - 1) == (54 - 1, 31)
    assert [subset.samples[0].caption for subset in dataset.subsets] == ["", "by hand", "by hand", "by hand"]
    assert {sample.caption for sample in dataset.subsets[1].samples[1:]} == {"portrait"}


def test_style_guide(base: Path, run: Callable[..., Dataset]) -> None:
    draw(base / "input" / "style-guide", [(64, 64)] * 30)
    dataset = run("recipe_2_style_guide", {**BY_NAME, ("AutoCaption", "pattern"): "ink, flat, paper, {name}"})
    assert Plan(dataset, 0).steps_per_epoch == 300
    (subset,) = dataset.subsets
    captions = [sighted_caption(subset.samples[0].caption, subset.config, 1, "key", n) for n in range(8)]
    assert {caption.split(", ")[0] for caption in captions} == {"ohwx style"} and len(set(captions)) > 3
    assert {frozenset(caption.split(", ")) for caption in captions} == {
        frozenset({"ohwx style", "ink", "flat", "paper", "portrait"})
    }  # fmt: skip


def test_hosted_trainer(base: Path, run: Callable[..., Dataset]) -> None:
    pytest.importorskip("smartcrop")
    draw(base / "input" / "character-square", [(64, 64)] * 12)
    draw(base / "input" / "character-tall", [(64, 96)] * 5 + [(96, 64)] * 3)
    draw(base / "input" / "woman", [(64, 64)] * 15)
    (widgets,) = stored("recipe_3_hosted_trainer", "AutoCaption")
    assert (widgets["general_threshold"], widgets["character_threshold"]) == (0.6, 0.6)
    tags = "long hair, blue_eyes, smile, {name}"
    dataset = run("recipe_3_hosted_trainer", {**BY_NAME, ("AutoCaption", "pattern"): tags})
    square, tall, prior = dataset.subsets
    sizes = [{bucket_of(s.width, s.height, subset.config) for s in subset.samples} for subset in dataset.subsets]
    assert sizes == [{(512, 512)}, {(512, 768), (768, 512)}, {(512, 512)}]
    assert all(sample.focus is not None for sample in dataset.samples)
    assert {sample.caption for subset in (square, tall) for sample in subset.samples} == {"ohwx, smile, portrait"}
    assert {sample.caption for sample in prior.samples} == {"a woman"} and not list((base / "input" / "woman").glob("*.txt"))
    assert Plan(Dataset((square, tall)), 0).steps_per_epoch * 10 == 2000 and Plan(dataset, 0).steps_per_epoch == 400


def test_real_life_face(base: Path, run: Callable[..., Dataset]) -> None:
    draw(base / "input" / "image" / "25_MiraVelden", [(64, 64)] * 32)
    repeats = 4800 // (32 * 10)
    assert repeats == 15
    dataset = run("recipe_4_real_life_face")
    (subset,) = dataset.subsets
    assert subset.repeats == repeats and Plan(dataset, 0).steps_per_epoch * 10 == 4800
    assert {bucket_of(s.width, s.height, subset.config) for s in subset.samples} == {(768, 768)}
    assert {sample.caption for sample in subset.samples} == {"MiraVelden, portrait"}
    again = run("recipe_4_real_life_face", {**BY_NAME, ("LoadDataset", "repeats"): 0})
    assert again.subsets[0].repeats == 25 and Plan(again, 0).steps_per_epoch * 6 == 4800
    (config,) = stored("recipe_4_real_life_face", "ConfigureLoRA")
    assert (config["max_steps"], config["epochs"]) == (4800, 10)


def test_sdxl_subject(base: Path, run: Callable[..., Dataset]) -> None:
    """Where Render Regularisation stands, Load Dataset reads a folder as that node hands it on."""
    draw(base / "input" / "Img" / "25_ohwx", [(64, 64)] * 30)
    draw(base / "input" / "reg" / "1_man", [(64, 64)] * 40)
    (widgets,) = stored("recipe_5_sdxl_subject", "AutoCaption")
    assert (widgets["beams"], widgets["min_length"], widgets["prefix"]) == (10, 25, "ohwx, ")
    subject = run("recipe_5_sdxl_subject")
    prior = Dataset(scan(base / "input" / "reg", SubsetConfig("input/reg", 1024, role="regularisation")))
    assert (subject.subsets[0].repeats, subject.subsets[0].config.caption_dropout) == (25, 0.1)
    assert {sample.caption for sample in subject.samples} == {"ohwx, portrait"}
    assert [sample.caption for sample in prior.samples] == ["man"] * 40
    plan = Plan(subject + prior, 0)
    assert [row.sightings for row in plan.bucket_table()] == [25 * 30, 750] and plan.steps_per_epoch * 4 == 6000
    alone = run("recipe_5_sdxl_subject", {**BY_NAME, ("LoadDataset", "repeats"): 20})
    assert Plan(alone, 0).steps_per_epoch * 4 == 2400
