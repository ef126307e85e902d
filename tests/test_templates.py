"""The templates "My 20 pictures on ...": as they would be written now, in order, each with a picture and the files it needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo import enlarging, guiding, masking, sliding, sweeping, templates, workflow
from lora_atelier.tests.host import support
from lora_atelier.training.config import SliderConfig
from lora_atelier.training.grid.axes import parse_strengths
from lora_atelier.training.starting import points
from PIL import Image

from .write_templates import FOLDER, OTHERS, other_text, texts

SHIPPED = sorted(FOLDER.glob("*.json"))
OURS = [path for path in SHIPPED if path.stem.split(" ")[0].isdecimal()]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def values_in(graph: dict[str, Any], kind: str) -> dict[Any, Any]:
    (node,) = [node for node in graph["nodes"] if node["type"] == kind]
    return workflow.named_values(node)


def test_what_is_stored_is_what_would_be_written(comfyui: object) -> None:
    written = dict(texts(support.host("new").info))
    assert list(written) == [path.stem for path in OURS]
    for path in OURS:
        assert path.read_text(encoding="utf-8") == written[path.stem], "python -m pytest tests/write_templates.py"


@pytest.mark.parametrize("title", OTHERS)
def test_those_that_show_one_thing_are_what_would_be_written(comfyui: object, title: str) -> None:
    path = FOLDER / f"{title}.json"
    written = other_text(title, support.host("new").info)
    assert path.read_text(encoding="utf-8") == written, "python -m pytest tests/write_templates.py"
    told = read(path)["nodes"][0]["widgets_values"][0]
    assert all(file.page in told and f"`models/{file.folder}`" in told for file in OTHERS[title].DESCRIPTION.files)


def test_the_slider_is_looked_at_on_both_sides(comfyui: object) -> None:
    graph = read(FOLDER / f"{sliding.TITLE}.json")
    assert parse_strengths(values_in(graph, "EpochWeightGrid")["strengths"]) == (-2, -1, 0, 1, 2)
    slider, drawn = values_in(graph, "SliderDataset"), values_in(graph, "RenderRegularisation")
    assert slider["target"] == drawn["prompts"] and SliderConfig(**slider).source == "prompts"


def test_the_sweep_of_the_template_is_a_recipe_a_rate(comfyui: object) -> None:
    from lora_atelier.nodes.configure_lora import build_all

    graph = read(FOLDER / f"{sweeping.TITLE}.json")
    recipes = build_all(**values_in(graph, "ConfigureLoRA"))
    assert [one.optimizer.learning_rate for one in recipes] == [5e-5, 1e-4, 2e-4, 4e-4]
    assert values_in(graph, "EpochWeightGrid")["which_epochs"] == "last"


def test_the_masks_of_the_template_are_held_to(comfyui: object) -> None:
    graph = read(FOLDER / f"{masking.TITLE}.json")
    told = graph["nodes"][0]["widgets_values"][0]
    assert masking.SEGMENTER.page in told and f"`input/{masking.FOLDER}`" in told and "since 0.30" in told
    assert values_in(graph, "ConfigureLoRA")["mask_preservation"] == 1 and values_in(graph, "DatasetFromNodes")["mask_floor"] == 0


def test_the_template_that_enlarges_names_its_upscale_model(comfyui: object) -> None:
    told = read(FOLDER / f"{enlarging.TITLE}.json")["nodes"][0]["widgets_values"][0]
    assert enlarging.UPSCALER.page in told and "`models/upscale_models`" in told and f"`input/{enlarging.FOLDER}`" in told


def test_the_template_with_a_guider_draws_samples_and_grid_with_one_and_the_same(comfyui: object) -> None:
    graph = read(FOLDER / f"{guiding.TITLE}.json")
    kinds = {node["id"]: node["type"] for node in graph["nodes"]}
    links = {link[0]: kinds[link[1]] for link in graph["links"]}
    for kind in ("TrainLoRA", "EpochWeightGrid"):
        (node,) = [node for node in graph["nodes"] if node["type"] == kind]
        wired = {entry["name"]: links.get(entry["link"]) for entry in node["inputs"]}
        assert [wired[name] for name in ("sampler", "sigmas", "guider")] == [
            "KSamplerSelect", "AlignYourStepsScheduler", "CFGGuider",
        ]  # fmt: skip


def test_the_first_in_the_list_is_a_beginners() -> None:
    assert [path.stem for path in SHIPPED[:2]] == ["01 My 20 pictures on SDXL", "02 My 20 pictures on Z-Image"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_has_a_picture_for_the_list(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and picture.width >= 400
    assert path.with_suffix(".jpg").stat().st_size < 40_000


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_the_note_names_each_file_its_folder_and_where_it_is_had(path: Path) -> None:
    graph = read(path)
    told = " ".join(node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote")
    loaders = [node for node in graph["nodes"] if "Loader" in node["type"]]
    files = [value for node in loaders for value in node["widgets_values"] if str(value).endswith(".safetensors")]
    assert files
    for file in files:
        assert re.search(rf"\[{re.escape(file)}\]\(https://\S+\) \| `models/\w+`", told), file
    assert (templates.FOLDER in told or templates.FILMS in told) and "preset" in told


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_twenty_pictures_make_a_run_of_usual_length(path: Path) -> None:
    graph = read(path)
    data, config = values_in(graph, "LoadDataset"), values_in(graph, "ConfigureLoRA")
    steps = -(-templates.PICTURES * data["repeats"] // data["batch_size"]) * config["epochs"]
    assert 1500 <= steps <= 2100 and data["resolution"] >= 512
    start = next(node for node in graph["nodes"] if node["type"] == "ConfigureLoRA")["properties"]["lora_atelier_start"]
    assert points.Choice(**start) and config["preset"] == start["model"]


@pytest.mark.parametrize(("title", "learns", "draws"), [
    ("Z-Image-Turbo", ["LoraLoaderModelOnly", "z_image_turbo_bf16.safetensors"], ["z_image_turbo_bf16.safetensors"]),
    ("Z-Image, drawn by Turbo", ["z_image_bf16.safetensors"], ["z_image_turbo_bf16.safetensors"]),
])  # fmt: skip
def test_a_distilled_model_draws_in_few_steps_and_is_not_what_is_learnt_on(
    title: str, learns: list[str], draws: list[str]
) -> None:
    graph = read(next(path for path in OURS if path.stem.endswith(f"on {title}")))
    by_id = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: by_id[link[1]] for link in graph["links"]}

    def way(kind: str, wire: str) -> list[str]:
        node, found = next(node for node in graph["nodes"] if node["type"] == kind), []
        while link := next((entry.get("link") for entry in node["inputs"] if entry["name"] == wire), None):
            node, wire = links[link], "model"
            found.append(node["widgets_values"][0] if node["type"] == "UNETLoader" else node["type"])
        return found

    assert way("TrainLoRA", "model") == learns
    assert way("TrainLoRA", "preview_model") == way("EpochWeightGrid", "model") == draws
    sampling = [values_in(graph, "TrainLoRA"), values_in(graph, "EpochWeightGrid")]
    assert [(sampling[0]["preview_steps"], sampling[0]["preview_cfg"]), (sampling[1]["steps"], sampling[1]["cfg"])] == [
        (8, 1.0)
    ] * 2


def test_no_living_person_is_named() -> None:
    text = (FOLDER / "recipe_4_real_life_face.json").read_text(encoding="utf-8")
    assert "MiraVelden" in text and "invented" in text and "Scarlett" not in text


def test_the_demo_leaves_nothing_of_itself_in_a_persons_file() -> None:
    config = values_in(read(FOLDER / "train_then_test.json"), "ConfigureLoRA")
    assert "moji" not in config["name"] + config["comment"]
