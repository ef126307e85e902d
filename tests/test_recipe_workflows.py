"""The data part of five published recipes, from the shipped workflows to their authors' sums, on drawn pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo import workflow as canvas
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.dataset.plan import Plan, bucket_of
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.sightings import sighted_caption

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "workflows").glob("recipe_*_data.json"))
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
    """Runs a recipe's workflow node by node, as the canvas would send it; what the last node gives."""

    def give(stem: str, overrides: canvas.Overrides = BY_NAME) -> Dataset:
        info = {name: node.GET_NODE_INFO_V1() for name, node in nodes.items()}
        prompt = canvas.to_prompt(workflow(stem), info, overrides)
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
    return json.loads((ROOT / "workflows" / f"{stem}_data.json").read_text(encoding="utf-8"))


def stored(stem: str, kind: str, nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """The widgets of all nodes of a kind, by name."""
    info = nodes[kind].GET_NODE_INFO_V1()
    return [canvas.widget_values(node, info) for node in workflow(stem)["nodes"] if node["type"] == kind]


def draw(folder: Path, sizes: Iterable[tuple[int, int]]) -> None:
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        noise_picture(size, 80, i).save(folder / f"portrait_{i:03}.png")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_before_the_folders_are_there_each_node_says_what_to_do(path: Path, nodes: dict[str, Any]) -> None:
    stem = path.stem.removesuffix("_data")
    for widgets in stored(stem, "LoadDataset", nodes):
        said = nodes["LoadDataset"].validate_inputs(folder=widgets["folder"])
        assert f"folder: {widgets['folder']!r} does not exist here" in said
    for widgets in stored(stem, "AutoCaption", nodes):
        said = nodes["AutoCaption"].validate_inputs(captioner=widgets["captioner"])
        assert said is True or f"captioner: {widgets['captioner']!r} is not in" in said
        hub_id = widgets["hub_id"]
        assert not hub_id or (hub_id.replace("/", "--") == widgets["captioner"] and not widgets["download"])


def test_there_is_one_for_each_recipe() -> None:
    assert [path.stem.split("_")[1] for path in RECIPES] == ["1", "2", "3", "4", "5"]


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


def test_style_guide(base: Path, run: Callable[..., Dataset], nodes: dict[str, Any]) -> None:
    draw(base / "input" / "style-guide", [(64, 64)] * 30)
    dataset = run("recipe_2_style_guide", {**BY_NAME, ("AutoCaption", "pattern"): "ink, flat, paper, {name}"})
    assert Plan(dataset, 0).steps_per_epoch == 300
    (subset,) = dataset.subsets
    captions = [sighted_caption(subset.samples[0].caption, subset.config, 1, "key", n) for n in range(8)]
    assert {caption.split(", ")[0] for caption in captions} == {"ohwx style"} and len(set(captions)) > 3
    assert {frozenset(caption.split(", ")) for caption in captions} == {
        frozenset({"ohwx style", "ink", "flat", "paper", "portrait"})
    }  # fmt: skip


def test_hosted_trainer(base: Path, run: Callable[..., Dataset], nodes: dict[str, Any]) -> None:
    pytest.importorskip("smartcrop")
    draw(base / "input" / "character-square", [(64, 64)] * 12)
    draw(base / "input" / "character-tall", [(64, 96)] * 5 + [(96, 64)] * 3)
    draw(base / "input" / "woman", [(64, 64)] * 15)
    (widgets,) = stored("recipe_3_hosted_trainer", "AutoCaption", nodes)
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
    draw(base / "input" / "image" / "25_ScarlettJohansson", [(64, 64)] * 32)
    dataset = run("recipe_4_real_life_face")
    (subset,) = dataset.subsets
    assert subset.repeats == 25 and Plan(dataset, 0).steps_per_epoch == 25 * 32
    assert {bucket_of(s.width, s.height, subset.config) for s in subset.samples} == {(768, 768)}
    assert {sample.caption for sample in subset.samples} == {"ScarlettJohansson, portrait"}
    repeats = 4800 // (32 * 10)
    assert repeats == 15
    again = run("recipe_4_real_life_face", {**BY_NAME, ("LoadDataset", "repeats"): repeats})
    assert Plan(again, 0).steps_per_epoch * 10 == 4800


def test_sdxl_subject(base: Path, run: Callable[..., Dataset], nodes: dict[str, Any]) -> None:
    draw(base / "input" / "Img" / "25_ohwx", [(64, 64)] * 30)
    draw(base / "input" / "reg" / "1_man", [(64, 64)] * 40)
    (widgets,) = stored("recipe_5_sdxl_subject", "AutoCaption", nodes)
    assert (widgets["beams"], widgets["min_length"], widgets["prefix"]) == (10, 25, "ohwx, ")
    dataset = run("recipe_5_sdxl_subject")
    subject, prior = dataset.subsets
    assert (subject.repeats, prior.repeats, subject.config.caption_dropout) == (25, 1, 0.1)
    assert {sample.caption for sample in subject.samples} == {"ohwx, portrait"}
    assert {sample.caption for sample in prior.samples} == {"man"} and not list((base / "input" / "reg").rglob("*.txt"))
    assert [row.sightings for row in Plan(dataset, 0).bucket_table()] == [25 * 30, 750]
    alone = run("recipe_5_sdxl_subject", {**BY_NAME, ("LoadDataset", "repeats"): 20}).subsets[0]
    assert Plan(Dataset((alone,)), 0).steps_per_epoch * 4 == 2400
