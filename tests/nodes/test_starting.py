"""What a starting point sets in the nodes of a graph, asked as the canvas asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.starting import points

KINDS = ("LoadDataset", "AutoCaption", "ConfigureLoRA", "TrainLoRA", "EpochWeightGrid")


@pytest.fixture
def modules(comfyui: Path) -> tuple[Any, Any]:
    from lora_atelier.nodes import preset_routes, starting

    return preset_routes, starting


@pytest.fixture
def fresh(modules: tuple[Any, Any]) -> dict[str, dict[str, Any]]:
    """Widgets of fresh nodes."""
    return {kind: modules[1].defaults_of(kind) for kind in KINDS}


@pytest.fixture
def pictures(base_directory: Path) -> Iterator[str]:
    folder = base_directory / "input" / "starting"
    folder.mkdir(parents=True)
    files = [folder / f"{i}.png" for i in range(20)]
    for i, file in enumerate(files):
        noise_picture((64, 64), 80, i).save(file)
    yield "input/starting"
    for file in files:
        file.unlink()
    folder.rmdir()


def asked(nodes: dict[str, dict[str, Any]] | list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    pairs = nodes.items() if isinstance(nodes, dict) else nodes
    return [{"type": kind, "values": values} for kind, values in pairs]


def after(nodes: dict[str, dict[str, Any]], answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {kind: {**values, **change} for (kind, values), change in zip(nodes.items(), answer["changes"], strict=True)}


@pytest.mark.parametrize("subject", points.catalogue().subjects)
@pytest.mark.parametrize("model", [name for name in points.catalogue().models if name != points.OTHER])
def test_one_choice_sets_all_five_nodes_to_what_they_take(modules, fresh, pictures, model, subject) -> None:
    from lora_atelier.nodes.configure_lora import build
    from lora_atelier.training import host
    from lora_atelier.training.config import SubsetConfig

    nodes = {**fresh, "LoadDataset": {**fresh["LoadDataset"], "folder": pictures}}
    answer = modules[0].starting({"preset": model, "choice": {"subject": subject, "memory": "12 GB"}, "nodes": asked(nodes)})
    now = after(nodes, answer)
    assert all(answer["changes"])
    build(**now["ConfigureLoRA"])
    subset = SubsetConfig(**now["LoadDataset"])
    assert (
        now["EpochWeightGrid"]["sampler_name"] in host.samplers() and now["TrainLoRA"]["preview_scheduler"] in host.schedulers()
    )
    steps = 20 * subset.repeats * now["ConfigureLoRA"]["epochs"] / subset.batch_size
    assert 1500 <= steps <= 2100


def test_nothing_stays_of_another_starting_point(modules, fresh) -> None:
    touched = {
        **fresh,
        "ConfigureLoRA": {**fresh["ConfigureLoRA"], "learning_rate": 0.002, "highest_level": 0.7, "rules": "* rank=4"},
    }
    before = {**touched["ConfigureLoRA"], "name": "mine", "comment": "ohwx", "seed": 7}
    nodes = {**touched, "ConfigureLoRA": before}
    now = after(nodes, modules[0].starting({"preset": "SDXL", "nodes": asked(nodes)}))["ConfigureLoRA"]
    assert (now["learning_rate"], now["highest_level"], now["rules"]) == (1e-4, 1.0, "")
    assert (now["name"], now["comment"], now["seed"]) == ("mine", "ohwx", 7)


def test_a_fresh_graph_gets_the_models_defaults_and_keeps_what_was_typed(modules, fresh) -> None:
    nodes = {**fresh, "EpochWeightGrid": {**fresh["EpochWeightGrid"], "cfg": 2.5}}
    choice = {"model": "SDXL", "memory": "24 GB"}
    answer = modules[0].starting({"preset": "suited to the model", "choice": choice, "nodes": asked(nodes), "fresh": True})
    now = after(nodes, answer)
    assert now["LoadDataset"]["resolution"] == 1024 and now["EpochWeightGrid"]["width"] == 1024
    assert now["EpochWeightGrid"]["cfg"] == 2.5 and "cfg" not in answer["changes"][-1]


def test_what_draws_with_the_trained_model_draws_at_its_size(modules, fresh) -> None:
    nodes = {
        **fresh, "KSampler": {"seed": 5, "steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
        "EmptySD3LatentImage": {"width": 128, "height": 128, "batch_size": 1},
    }  # fmt: skip
    now = after(nodes, modules[0].starting({"preset": "SDXL", "nodes": asked(nodes)}))
    assert now["KSampler"] == {
        "seed": 5,
        "steps": 25,
        "cfg": 6.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "denoise": 1.0,
    }
    assert now["EmptySD3LatentImage"] == {"width": 1024, "height": 1024, "batch_size": 1}


@pytest.mark.parametrize(
    ("drawn", "grids", "steps"),
    [
        (None, None, (25, 25)),
        ({"file": "sd_xl_base.safetensors", "loras": ["ink"]}, None, (25, 25)),
        ({"file": "sd_xl_base.safetensors", "loras": ["ink", "x/sdxl_lightning_4step.safetensors"]}, None, (8, 8)),
        ({"file": "sdxl_turbo.safetensors", "loras": []}, {"file": "sd_xl_base.safetensors", "loras": []}, (8, 25)),
        ({"file": "sd_xl_base.safetensors"}, {"file": "sd_xl_base.safetensors", "loras": ["hyper_sdxl"]}, (25, 8)),
        ({"file": "sd_xl_base.safetensors", "loras": ["sdxl_turbo_training_adapter"]}, None, (25, 25)),
    ],
)
def test_samples_and_cells_are_each_drawn_as_their_own_model_is(modules, fresh, drawn, grids, steps) -> None:
    """A LoRA for few steps counts as a distilled model does; a grid that has a model of its own is drawn as that is."""
    told = [{**node, "drawn": grids} if node["type"] == "EpochWeightGrid" else node for node in asked(fresh)]
    now = after(fresh, modules[0].starting({"preset": "SDXL", "nodes": told, "drawn": drawn}))
    assert (now["TrainLoRA"]["preview_steps"], now["EpochWeightGrid"]["steps"]) == steps


def test_names_of_older_workflows_mean_what_they_meant(modules, fresh) -> None:
    for old, new in (("SD1.5", "SD 1.5"), ("SDXL", "SDXL"), ("SD3", "SD 3.5 medium"), ("Flux", "Flux dev")):
        assert modules[0].starting({"preset": old, "nodes": asked(fresh)})["model"] == new


def test_several_sizes_are_left_and_regularisation_keeps_its_repeats(modules, fresh, pictures) -> None:
    data = {**fresh["LoadDataset"], "folder": pictures}
    nodes = [
        ("LoadDataset", {**data, "resolution": 256}), ("LoadDataset", {**data, "resolution": 1024}),
        ("LoadDataset", {**data, "role": "regularisation", "repeats": 3}), ("ConfigureLoRA", fresh["ConfigureLoRA"]),
    ]  # fmt: skip
    answer = modules[0].starting({"preset": "SDXL", "nodes": asked(nodes)})
    assert all("resolution" not in change for change in answer["changes"][:3])
    assert "repeats" not in answer["changes"][2] and answer["changes"][0]["repeats"] == answer["changes"][1]["repeats"]
    assert any("different sizes" in note for note in answer["notes"])


def test_what_is_off_is_not_contradicted(modules, fresh) -> None:
    nodes = {**fresh, "LoadDataset": {**fresh["LoadDataset"], "folder": "input/x", "captions": False}}
    from lora_atelier.training.config import SubsetConfig

    SubsetConfig(**after(nodes, modules[0].starting({"preset": "Pony", "nodes": asked(nodes)}))["LoadDataset"])


def test_a_captioner_that_can_be_asked_is_asked_about_the_subject(modules, fresh) -> None:
    asking = {**fresh, "AutoCaption": {**fresh["AutoCaption"], "captioner": "connected clip", "prompt": ""}}
    own = {**asking, "AutoCaption": {**asking["AutoCaption"], "prompt": "In French."}}
    question = {"preset": "Qwen-Image", "choice": {"subject": "person"}}
    assert "the clothes" in modules[0].starting({**question, "nodes": asked(asking)})["changes"][1]["prompt"]
    assert "prompt" not in modules[0].starting({**question, "nodes": asked(own)})["changes"][1]


def test_what_cannot_be_had_is_said(modules, fresh, monkeypatch) -> None:
    choice = {"subject": "style", "memory": "8 GB"}
    notes = modules[0].starting({"preset": "Flux.2 dev", "choice": choice, "nodes": asked(fresh)})["notes"]
    assert any("bitsandbytes" in note for note in notes) and any("not expected to fit" in note for note in notes)
    assert any("24 pictures" in note for note in notes)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"preset": "Flux 9", "nodes": []}, "model: 'Flux 9' is not one of"),
        ({"preset": "SDXL", "choice": {"subject": "cat"}, "nodes": []}, "subject: 'cat' is not one of"),
        ({"preset": "SDXL", "nodes": [{"type": "SaveImage", "values": {}}]}, "nodes: each needs a type"),
        ({"preset": "SDXL"}, "nodes: a list"),
    ],
)
def test_a_bad_question_is_answered_with_a_sentence(modules, question, said) -> None:
    with pytest.raises(AtelierError, match=said):
        modules[0].starting(question)


def test_a_preset_of_ones_own_is_saved_without_what_is_personal_and_read_again(modules, fresh) -> None:
    nodes = {
        **fresh, "ConfigureLoRA": {**fresh["ConfigureLoRA"], "rank": 12, "comment": "secret"},
        "TrainLoRA": {**fresh["TrainLoRA"], "preview_prompt": "my house"},
    }  # fmt: skip
    saved = modules[0].preset_text({"name": "my ink", "nodes": asked(nodes)})
    assert saved["file"] == "my ink.json" and "secret" not in saved["text"] and "my house" not in saved["text"]
    answer = modules[0].read_settings({"text": saved["text"], "name": saved["file"]})
    assert answer["nodes"]["ConfigureLoRA"]["rank"] == 12 and answer["origin"] == "the preset my ink"
    assert answer["lost"] == [] and answer["warning"] == ""


def test_a_preset_of_a_stranger_sets_nothing_but_widgets(modules) -> None:
    text = (
        '{"lora_atelier_preset": 1, "name": "x", "nodes": {"KSampler": {"steps": 3}, "LoadDataset": {"folder": "input/secret", '
        '"resolution": 1000000, "batch_size": "four", "crop": "sideways", "colour": 1, "flip": true}}}'
    )
    answer = modules[0].read_settings({"text": text})
    assert answer["nodes"] == {"LoadDataset": {"flip": True}}
    assert {one["setting"] for one in answer["lost"]} == {"steps", "resolution", "batch_size", "crop", "colour"}


def test_nothing_stays_of_an_earlier_recipe_beside_what_a_file_sets(modules, fresh) -> None:
    text = 'network_module = "networks.lora"\nnetwork_dim = 8\nnetwork_alpha = 4\nunet_lr = 1e-4\n'
    answer = modules[0].read_settings({"text": text})
    before = {**fresh["ConfigureLoRA"], "name": "mine", "seed": 7, "rules": "* rank=4", "highest_level": 0.7, "rank": 99}
    now = {**before, **answer["reset"]["ConfigureLoRA"], **answer["nodes"]["ConfigureLoRA"]}
    assert (now["rank"], now["alpha"], now["rules"], now["highest_level"]) == (8, 4.0, "", 1.0)
    assert (now["name"], now["seed"]) == ("mine", 7)
    own = modules[0].read_settings({"text": '{"lora_atelier_preset": 1, "name": "x", "nodes": {"ConfigureLoRA": {"rank": 4}}}'})
    assert own["reset"] == {} and own["nodes"] == {"ConfigureLoRA": {"rank": 4}}


def test_what_contradicts_itself_is_said_before_it_is_taken(modules) -> None:
    toml = 'network_dim = 8\noptimizer_type = "Prodigy"\nlearning_rate = 1e-5\nlr_scheduler = "cosine"\n'
    assert "Prodigy finds the rate itself" in modules[0].read_settings({"text": toml})["warning"]


def test_a_lora_that_was_trained_here_gives_its_whole_recipe_back(modules, fresh) -> None:
    import json

    from lora_atelier.nodes.configure_lora import build
    from lora_atelier.tests.training.runs.test_metadata import subset, told

    widgets = {
        **fresh["ConfigureLoRA"], "name": "ink", "rank": 24, "rules": "* rank=4", "highest_level": 0.875, "when_enough": "say",
        "schedule": "annealing", "cycles": 4, "cycle_steps": 50, "min_rate": 2e-5, "base_weights": "int8",
    }  # fmt: skip
    config = build(**widgets)
    text = json.dumps(told(config, subset("input/5_fox", 6, repeats=5)))
    answer = modules[0].read_settings({"text": text, "name": "ink.safetensors"})
    assert build(**{**fresh["ConfigureLoRA"], **answer["nodes"]["ConfigureLoRA"]}) == config
    assert answer["nodes"]["LoadDataset"]["repeats"] == 5 and answer["lost"] == []
