"""The server's answers to the canvas, asked over HTTP: right ones, and bad questions that must not break anything."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_atelier.tests import tiny_models
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.runs import live
from PIL import Image

JSON = {"Content-Type": "application/json"}
RUN = "routes-test"


@pytest.fixture(scope="module")
def routes(comfyui: Path) -> Any:
    from lora_atelier.nodes import routes

    return routes


@pytest.fixture(scope="module")
def checkpoint(comfyui: Path, base_directory: Path) -> str:
    """A model file as the stock loader lists it."""
    target = base_directory / "models" / "checkpoints" / "routes-tiny-sd15.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        tiny_models.link(tiny_models.cached("sd15"), target)
    return target.name


@pytest.fixture(scope="module")
def folder(comfyui: Path) -> Iterator[str]:
    """Five pictures of two shapes."""
    from lora_atelier.training import host

    path = host.dataset_roots()["input"] / "routes-shapes"
    path.mkdir(parents=True)
    for i in range(5):
        noise_picture((64, 64) if i < 3 else (128, 32), 40, seed=i).save(path / f"{i}.png")
    yield "input/routes-shapes"
    shutil.rmtree(path)


@pytest.fixture
def run(comfyui: Path) -> Iterator[Path]:
    """A run of 6 steps on the disk, cut short at 4."""
    from lora_atelier.training import host

    path = host.runs_folder() / RUN
    (path / "samples").mkdir(parents=True)
    saved = [{"file": f"{RUN}-000001.safetensors", "epoch": 1, "step": 3, "kind": "epoch"}]
    (path / "run.json").write_text(json.dumps({"identity": "x", "saved": saved, "total": 6, "steps_per_epoch": 3}))
    rows = [{"step": s, "epoch": 1 + (s > 3), "loss": 1 / s, "rate": 1e-4} for s in range(1, 5)]
    (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    noise_picture((32, 32), 40).save(path / "samples" / f"{RUN}-000001.png")
    yield path
    shutil.rmtree(path)


def asked(routes: Any, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """What ``work(client)`` gives, with a real server around the routes, guarded as ``host.add_routes`` adds them."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer
    from lora_atelier.training.host.senders import guarded

    async def inside() -> Any:
        app = web.Application()
        app.add_routes([web.route(route.method, route.path, guarded(route.handler)) for route in routes.table])
        async with TestClient(TestServer(app)) as client:
            return await work(client)

    return asyncio.run(inside())


def post(routes: Any, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    from yarl import URL

    data = body if isinstance(body, (bytes, str)) else json.dumps(body)

    async def work(client: Any) -> tuple[int, Any]:
        url = URL(f"http://{client.host}:{client.port}/lora_atelier/{path}", encoded=True)
        sent = JSON if headers is None else headers
        async with client.session.post(url, data=data, headers=sent, skip_auto_headers=["Content-Type"]) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    return asked(routes, work)


def get(routes: Any, path: str) -> tuple[int, Any]:
    from yarl import URL

    async def work(client: Any) -> tuple[int, Any]:
        url = URL(f"http://{client.host}:{client.port}/lora_atelier/{path}", encoded=True)
        async with client.session.get(url) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    return asked(routes, work)


# The recipe's outlook


def test_the_curve_is_that_of_the_recipe(routes):
    widgets = {"learning_rate": 2e-4, "schedule": "linear", "warmup_steps": 10, "max_steps": 110, "preset": "SDXL"}
    status, ahead = post(routes, "outlook", {"widgets": widgets})
    assert status == 200 and ahead["known"] and ahead["total"] == 110
    points = dict(map(tuple, ahead["points"]))
    # Up in ten steps, then down on a straight line that would meet 0 after step 110.
    assert points[0] == pytest.approx(2e-5) and points[9] == pytest.approx(2e-4) and points[10] == pytest.approx(2e-4)
    assert points[60] == pytest.approx(1e-4) and points[109] == pytest.approx(2e-6)


def test_what_will_go_wrong_is_told_with_the_outlook(routes, folder):
    """A rate that belongs to another optimizer, an epoch that will not be there, a package's name, pictures by the thousands."""
    datasets = [{"folder": folder, "resolution": 64, "bucket_step": 8, "batch_size": 2, "repeats": 3}]
    body = {
        "widgets": {"learning_rate": 1.0, "epochs": 4},
        "datasets": datasets,
        "grids": [{"which_epochs": "2, 9"}, {"which_epochs": "all", "strengths": "0,6,,x"}],
        "samples": 2,
    }
    _, ahead = post(routes, "outlook", body)
    assert [one.split(":")[0] for one in ahead["warnings"]] == ["which_epochs", "strengths", "learning rate"]
    assert ahead["grids"] == [ahead["warnings"][:1], ahead["warnings"][1:2]], "one bad widget is one sentence, in its own node"
    assert "will not save 9" in ahead["warnings"][0] and ahead["sentence"] == ""
    assert not set(ahead["warnings"]) & set(ahead["notes"]), "each is said once"
    _, ahead = post(routes, "outlook", {**body, "widgets": {"epochs": 4}, "grids": [{"which_epochs": "2"}]})
    assert ahead["warnings"] == []


def test_a_distilled_model_and_what_lies_on_it_are_told_with_the_outlook(routes):
    import folder_paths

    widget = "unet_name"
    path = Path(folder_paths.get_folder_paths("diffusion_models")[0]) / "z_image_turbo.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    model = {"widget": widget, "file": path.name}
    body = {"widgets": {"max_steps": 9}, "model": model, "steps": 20, "guidance": 4.0}
    adapted = {**body, "loras": ["zimage_turbo_training_adapter_v2.safetensors"]}
    plain = {"model": model, "loras": []}
    try:
        told = [
            post(routes, "outlook", {**given, "steps": steps})[1]["warnings"]
            for given, steps in (
                (body, 20), (adapted, 8), ({**adapted, "preview": plain}, 8),
                ({**body, "loras": ["pytorch"], "preview": plain}, 8),
                ({**adapted, "preview": {**plain, "loras": adapted["loras"]}}, 8),
                ({**body, "loras": ["pytorch"] * 5000, "preview": plain}, 8),
                ({**body, "preview": {"model": {"widget": widget, "file": "gone.gguf"}, "loras": []}}, 0),
            )
        ]  # fmt: skip
    finally:
        path.unlink()
    said = [[one.split(":")[0] for one in warnings] for warnings in told]
    assert said == [["model", "preview_cfg"], ["preview_model"], [], [], ["preview_model"], [], ["model"]]


def test_films_that_no_device_of_this_size_can_draw_are_told_with_the_outlook(routes, folder, monkeypatch):
    """A side of 0 is that of the pictures; what it takes is what the host reckons for the loaded model."""
    import comfy.model_management
    import comfy.supported_models
    import folder_paths
    import torch
    from comfy.sd import load_diffusion_model
    from lora_atelier.tests.zoo.recipes import wan
    from safetensors.torch import save_file

    config = comfy.supported_models.WAN21_T2V(dict(wan()))
    config.unet_config.update(wan())
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({}, "", device=torch.device("cpu")).diffusion_model
    path = Path(folder_paths.get_folder_paths("diffusion_models")[0]) / "tiny_wan.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}, path)
    body = {
        "widgets": {"max_steps": 9}, "model": {"widget": "unet_name", "file": path.name}, "samples": 2 * 33,
        "datasets": [{"folder": folder, "resolution": 64, "bucket_step": 8}],
    }  # fmt: skip
    try:
        needed = load_diffusion_model(str(path)).model.memory_required([1, 16, 9, 64 // 8, 128 // 8])
        told = []
        for there in (int(needed) - 1, int(needed) + 1):
            monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_, there=there: there)
            film = {"frames": 33, "width": 128, "height": 0}
            told.append(post(routes, "outlook", {**body, "film": film})[1]["warnings"])
            assert post(routes, "outlook", {**body, "film": {**film, "frames": 1}})[1]["warnings"] == []
    finally:
        path.unlink()
    ((said,), nothing) = told
    assert said.startswith("preview_frames: a sample of 33 frames at 128 x 64 takes about ") and nothing == []


@pytest.mark.parametrize("name", ["half.safetensors", "old.ckpt"])
def test_a_model_that_cannot_be_read_costs_nothing_but_its_sizes(routes, name):
    import folder_paths

    path = Path(folder_paths.get_folder_paths("checkpoints")[0]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    try:
        status, ahead = post(routes, "outlook", {"widgets": {"max_steps": 9}, "model": {"widget": "ckpt_name", "file": name}})
    finally:
        path.unlink()
    assert status == 200 and ahead["total"] == 9 and ahead["points"] and name in ahead["sentence"] and ahead["bytes"] is None


@pytest.mark.parametrize("encoders", ["none", "clip"])
def test_a_text_encoder_of_another_packs_loader_is_no_mistake(routes, encoders):
    texts = [{"widget": "clip_name1", "file": "t5xxl.gguf"}]
    _, ahead = post(routes, "outlook", {"widgets": {"text_encoder": encoders, "max_steps": 9}, "texts": texts})
    assert ahead["sentence"] == "" and ahead["total"] == 9


def test_many_long_prompts_of_a_grid_are_no_mistake(routes):
    _, ahead = post(routes, "outlook", {"widgets": {"max_steps": 9}, "grids": [{"prompts": "a long prompt, " * 2000}]})
    assert ahead["sentence"] == "" and ahead["total"] == 9


@pytest.mark.parametrize(
    "body",
    [
        {"grids": "all"},
        {"grids": [3]},
        {"grids": [{}] * 65},
        {"grids": [{"steps": "3"}]},
        {"grids": [{"prompts": 3}]},
        {"samples": -1},
        {"samples": True},
        {"samples": "x"},
        {"texts": "x"},
        {"texts": [1]},
        {"loras": "x"},
        {"loras": [1]},
        {"preview": "x"},
        {"film": "x"},
        {"film": {"frames": 81}},
        {"film": {"frames": 81, "width": -1, "height": 0}},
        {"film": {"frames": True, "width": 64, "height": 64}},
        {"film": {"frames": 81, "width": 64, "height": 1e9}},
    ],
)
def test_what_is_asked_besides_is_checked(routes, body):
    status, answer = post(routes, "outlook", {"widgets": {}, **body})
    assert status == 400 and answer["error"].startswith(next(iter(body)))


def test_steps_come_from_the_connected_folders(routes, folder):
    datasets = [{"folder": folder, "resolution": 64, "bucket_step": 8, "batch_size": 2, "repeats": 3}]
    _, ahead = post(routes, "outlook", {"widgets": {"epochs": 4}, "datasets": datasets})
    # Two shapes: 3 x 3 pictures and 2 x 3, two at a time: 5 and 3 steps.
    assert (ahead["steps_per_epoch"], ahead["total"], ahead["epochs"]) == (8, 32, 4)
    _, ahead = post(routes, "outlook", {"widgets": {"max_steps": 20}, "datasets": datasets * 2})
    assert (ahead["steps_per_epoch"], ahead["total"], ahead["epochs"]) == (16, 20, 2)


def test_the_steps_are_those_of_the_node_that_reads_the_folder(routes, folder):
    from lora_atelier.nodes import outlook
    from lora_atelier.training import host
    from lora_atelier.training.config import SubsetConfig
    from lora_atelier.training.dataset.plan import Plan
    from lora_atelier.training.dataset.samples import Dataset
    from lora_atelier.training.dataset.scan import scan

    values = {"folder": folder, "resolution": 64, "bucket_step": 8, "batch_size": 2, "repeats": 2, "validation_share": 0.4}
    root = host.dataset_roots()["input"]
    index = outlook.sources_of([values])[0].index
    real = Plan(Dataset(scan(root / "routes-shapes", SubsetConfig(**values), root, index)), 0).steps_per_epoch
    assert post(routes, "outlook", {"widgets": {}, "datasets": [values]})[1]["steps_per_epoch"] == real


@pytest.mark.parametrize("role", ["training", "regularisation", "validation"])
def test_the_steps_of_a_slider_are_those_of_its_node(routes, folder, role):
    from lora_atelier.training import host
    from lora_atelier.training.config import SliderConfig, SubsetConfig
    from lora_atelier.training.dataset.plan import Plan
    from lora_atelier.training.dataset.samples import Dataset
    from lora_atelier.training.dataset.scan import scan
    from lora_atelier.training.dataset.sliders import slider_of

    size = {"folder": folder, "resolution": 64, "bucket_step": 8}
    chain = [{**size, "validation_share": 0.4}, {**size, "role": role, "repeats": 3}]
    root = host.dataset_roots()["input"]
    read = Dataset(tuple(s for values in chain for s in scan(root / "routes-shapes", SubsetConfig(**values), root)))
    real = Plan(slider_of(read, SliderConfig(positive="a", negative="b")), 0).steps_per_epoch
    asked = [{**values, "slider": "prompts"} for values in chain]
    assert post(routes, "outlook", {"widgets": {}, "datasets": asked})[1]["steps_per_epoch"] == real
    status, answer = post(routes, "outlook", {"widgets": {}, "datasets": [{**size, "slider": "films"}]})
    assert status == 400 and answer["error"].startswith("slider: one of prompts")


def test_the_pairs_of_a_slider_are_no_control_pictures(routes, checkpoint, tmp_path, monkeypatch):
    from lora_atelier.training import host
    from lora_atelier.training.estimate import cautions

    monkeypatch.setattr(cautions, "TINY", 0)

    folder = host.dataset_roots()["input"] / f"routes-pairs-{tmp_path.name}"
    (folder / "control").mkdir(parents=True)
    for place in (folder, folder / "control"):
        Image.new("RGB", (64, 64)).save(place / "a.png")
    body = {"widgets": {}, "model": {"widget": "ckpt_name", "file": checkpoint}}
    values = {"folder": f"input/{folder.name}", "resolution": 512}

    def said(**more):
        return " ".join(post(routes, "outlook", {**body, "datasets": [{**values, **more}]})[1]["warnings"])

    try:
        assert "control pictures" in said() and "control pictures" not in said(slider="pairs of pictures")
        assert "resolution: 362 is not a size of its own" in said(buckets=False, resolution=512, fixed_height=256)
        assert "resolution" not in said(buckets=False, resolution=320, fixed_height=832)
    finally:
        shutil.rmtree(folder)


def test_a_missing_folder_hides_no_curve(routes):
    _, ahead = post(routes, "outlook", {"widgets": {}, "datasets": [{"folder": "input/nowhere"}]})
    assert "does not exist here" in ahead["sentence"] and ahead["points"] and not ahead["known"]


def test_a_length_that_nobody_knows_gives_shares(routes):
    _, ahead = post(routes, "outlook", {"widgets": {"schedule": "cosine"}})
    assert not ahead["known"] and ahead["steps_per_epoch"] is None and ahead["epochs"] is None and ahead["bytes"] is None
    assert ahead["points"][0][1] == pytest.approx(1e-4) and ahead["points"][-1][0] == ahead["total"] - 1


def test_accumulated_batches_count_as_steps_of_the_bar(routes):
    _, ahead = post(routes, "outlook", {"widgets": {"max_steps": 100, "accumulate": 4, "warmup_steps": 5, "schedule": "linear"}})
    points = dict(map(tuple, ahead["points"]))
    assert points[16] == pytest.approx(1e-4), "the fifth step of the optimizer begins with the 17th batch"
    assert max(points) < 100


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"widgets": {"optimizer": "Prodigy", "schedule": "constant"}}, "learning rate: Prodigy finds the rate itself"),
        ({"widgets": {"warmup_steps": 20, "max_steps": 10}}, "warmup: 20 steps, but the run has only 10"),
        ({"widgets": {"optimizer_args": "lr=" + "9" * 5000}}, "lr"),
        ({"widgets": {"optimizer_args": "lr=1e400"}}, "learning rate: inf must be above 0"),
        ({"widgets": {"name": "../x"}}, "cannot be a file name"),
        ({"widgets": {"start_from": "../../etc/passwd"}}, "there is no LoRA called"),
        ({"widgets": {}, "datasets": [{"folder": "input/../models"}]}, "is not a folder in"),
        ({"widgets": {}, "datasets": [{"folder": "/etc"}]}, "is not a folder in"),
        ({"widgets": {}, "datasets": [{"folder": "input/nowhere"}]}, "does not exist here"),
        ({"widgets": {}, "model": {"widget": "ckpt_name", "file": "../../secret.safetensors"}}, "is not in the list"),
        ({"widgets": {}, "model": {"widget": "vae_name", "file": "x"}}, "is not in the list"),
    ],
)
def test_what_stands_in_the_way_is_said_in_a_sentence(routes, body, sentence):
    status, answer = post(routes, "outlook", body)
    assert status == 200 and sentence in answer["sentence"]


def test_the_files_size_is_that_of_a_file_that_was_written(routes, checkpoint, base_directory, tmp_path):
    """Counted from the header, against what the trainer writes for the same recipe."""
    import torch
    from comfy import sd
    from lora_atelier.training import host
    from lora_atelier.training.config import NetworkConfig
    from lora_atelier.training.network import lora_file
    from lora_atelier.training.network.adapter import Adapter
    from lora_atelier.training.network.scope import adaptable_layers
    from lora_atelier.training.network.targets import select
    from safetensors.torch import save_file

    path = base_directory / "models" / "checkpoints" / checkpoint
    loaded = host.Model(sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0])
    for network in ({"rank": 64}, {"rank": 32, "targets": "all", "conv_rank": 16}):
        layers, names = adaptable_layers(loaded, None)
        config = NetworkConfig(**network)
        adapter = Adapter.fresh(select(layers, config), config, 0)
        save_file(lora_file.to_file(adapter, names, loaded.family, torch.float16, layers), tmp_path / "lora.safetensors")
        written = os.path.getsize(tmp_path / "lora.safetensors")
        body = {"widgets": network, "model": {"widget": "ckpt_name", "file": checkpoint}}
        ahead = post(routes, "outlook", body)[1]
        assert ahead["bytes"] == pytest.approx(written, rel=0.05)
        # Weights, gradients and what a step finds before it is added to them, and AdamW's two means, beside the model's weights.
        trained = sum(p.numel() for p in adapter.parameters())
        assert ahead["memory"] == sum(p.nbytes for p in loaded.base.diffusion_model.parameters()) + 20 * trained


@pytest.mark.parametrize("encoders", ["clip", "all"])
def test_sizes_count_the_text_encoder_as_well(routes, base_directory, tmp_path, encoders):
    """A whole checkpoint's encoders by its header, against the file that the trainer writes."""
    import torch
    from comfy import sd
    from lora_atelier.tests import tiny_models
    from lora_atelier.training import host
    from lora_atelier.training.config import TextConfig, TrainingConfig
    from lora_atelier.training.network import lora_file
    from lora_atelier.training.network.adapter import Adapter
    from lora_atelier.training.network.scope import adaptable_layers, trained_layers
    from safetensors.torch import save_file

    for family in ("sd15", "sd3"):
        path = base_directory / "models" / "checkpoints" / f"routes-text-{family}.safetensors"
        shutil.copy(tiny_models.cached(family), path)
        patcher, clip, *_ = sd.load_checkpoint_guess_config(str(path), output_vae=False)
        loaded, config = host.Model(patcher), TrainingConfig("a", text=TextConfig(encoders))
        layers, names = adaptable_layers(loaded, host.TextEncoder(clip))
        adapter = Adapter.fresh(trained_layers(layers, config), config.network, 0)
        save_file(lora_file.to_file(adapter, names, loaded.family, torch.float16, layers), tmp_path / "lora.safetensors")
        file = {"widget": "ckpt_name", "file": path.name}
        import folder_paths

        folder_paths.filename_list_cache.clear()
        body = {"widgets": {"text_encoder": encoders}, "model": file}
        ahead = post(routes, "outlook", {**body, "texts": [file]})[1]
        assert ahead["bytes"] == pytest.approx(os.path.getsize(tmp_path / "lora.safetensors"), rel=0.05)
        assert ahead["memory"] > 20 * sum(p.numel() for p in adapter.parameters())
        assert post(routes, "outlook", body)[1]["bytes"] is None, "without a loader nobody knows"
        path.unlink()


def test_the_memory_grows_with_the_largest_pictures_of_the_chain(routes, checkpoint, folder):
    def activations(*datasets, **widgets):
        body = {"widgets": widgets, "model": {"widget": "ckpt_name", "file": checkpoint}, "datasets": list(datasets) or None}
        return post(routes, "outlook", body)[1]["activations"]

    small = {"folder": folder, "resolution": 64, "batch_size": 1}
    one = activations(small)
    assert activations() is None and one > 10**6
    assert activations({**small, "batch_size": 4}) == 4 * one
    assert activations(small, {**small, "resolution": 256}) > 8 * one
    assert activations(small, gradient_checkpointing=True) < one
    large, many = {**small, "resolution": 256}, {**small, "batch_size": 17}
    assert activations(large, many) == max(activations(large), activations(many))
    from lora_atelier.nodes import outlook

    pictures = [SubsetConfig("x", side, batch) for side, batch in ((64, 3), (512, 1), (64, 2), (256, 3))]
    assert outlook.largest_batches(pictures) == [(256, 3), (512, 1)]
    clips = [SubsetConfig("x", 64, 1, clip_frames="121")]
    assert outlook.largest_batches(clips) == [(64, 31)] and outlook.largest_batches(clips, 8) == [(64, 16)]


# The family


def test_the_family_is_told_from_the_header_alone(routes, checkpoint, base_directory):
    """The file here has no weights at all: reading any of them would fail."""
    whole = (base_directory / "models" / "checkpoints" / checkpoint).read_bytes()
    bare = base_directory / "models" / "checkpoints" / "routes-bare.safetensors"
    bare.write_bytes(whole[: 8 + int.from_bytes(whole[:8], "little")])
    try:
        import folder_paths

        folder_paths.filename_list_cache.clear()
        status, answer = post(routes, "family", {"widget": "ckpt_name", "file": bare.name})
    finally:
        bare.unlink()
    assert status == 200 and (answer["family"], answer["preset"]) == ("SD15", "SD 1.5")


def test_an_unknown_file_gets_a_careful_preset(routes, checkpoint, base_directory):
    import folder_paths
    import torch
    from safetensors.torch import save_file

    odd, broken = (base_directory / "models" / "checkpoints" / f"routes-{name}.safetensors" for name in ("odd", "broken"))
    save_file({"some.weight": torch.zeros(2, 2)}, odd)
    broken.write_bytes(b"\xff" * 40)
    folder_paths.filename_list_cache.clear()
    try:
        _, unknown = post(routes, "family", {"widget": "ckpt_name", "file": odd.name})
        _, damaged = post(routes, "family", {"widget": "ckpt_name", "file": broken.name})
    finally:
        odd.unlink()
        broken.unlink()
    assert unknown["family"] is None and unknown["preset"] == "another model" and "does not know" in unknown["note"]
    assert damaged["family"] is None and "damaged" in damaged["note"]
    assert "No loader was found" in post(routes, "family", {})[1]["note"]


# Runs


def test_a_run_on_the_disk_is_shown_and_then_only_what_is_new(routes, run):
    status, state = get(routes, f"runs/{RUN}")
    assert status == 200 and state["live"] is None and not state["finished"] and state["total"] == 6
    assert [row["step"] for row in state["rows"]] == [1, 2, 3, 4], "the line that was cut short is not shown"
    # Until the mean is older than fifty steps it is that of all.
    assert [row["smooth"] for row in state["rows"]] == pytest.approx([1, 3 / 4, 11 / 18, 25 / 48])
    (sample,) = state["samples"]
    assert (sample["label"], sample["subfolder"], sample["type"]) == ("epoch 1", f"lora-atelier/{RUN}/samples", "output")
    with open(run / "history.jsonl", "a") as file:
        file.write('ss": 0.5, "epoch": 2}\n{"step": 6, "epoch": 2, "loss": NaN, "rate": 1e-4}\n')
    _, state = get(routes, f"runs/{RUN}?since=4")
    assert [(row["step"], row["loss"]) for row in state["rows"]] == [(5, 0.5), (6, None)] and state["last"] == 6
    (run / "new.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 9.0, "rate": 1e-4}\n')
    os.replace(run / "new.jsonl", run / "history.jsonl")
    _, state = get(routes, f"runs/{RUN}?since=4")
    assert state["last"] == 1 and not state["rows"], "the run went on from an earlier step"


def test_the_newest_run_of_a_recipe_is_found(routes, run):
    second = run.parent / f"{RUN}-2"
    shutil.copytree(run, second)
    try:
        os.utime(second / "history.jsonl", (2**31, 2**31))
        assert get(routes, f"runs/{RUN}?newest=1")[1]["name"] == f"{RUN}-2"
        assert get(routes, f"runs/{RUN}")[1]["name"] == RUN
        assert {RUN, f"{RUN}-2"} <= set(get(routes, "runs")[1]["runs"])
        with live.entered(live.Live(RUN, lambda status: None), lambda error: False):
            assert get(routes, f"runs/{RUN}?newest=1")[1]["name"] == RUN, "the one that trains comes first"
    finally:
        shutil.rmtree(second)


def test_a_command_reaches_the_run_that_trains(routes, run):
    told: list[dict[str, Any]] = []
    with live.entered(live.Live(RUN, told.append, total=6), lambda error: False) as now:
        assert get(routes, f"runs/{RUN}")[1]["live"]["phase"] == "preparing"
        status, answer = post(routes, f"runs/{RUN}/command", {"command": "save"})
        assert status == 200 and answer["commands"] == ["save"] == told[-1]["commands"]
        assert now.pop_commands() == {"save"} and not now.pop_commands()
    assert told[-1]["phase"] == "finished"
    assert post(routes, f"runs/{RUN}/command", {"command": "save"})[0] == 404


OUTSIDE = ["..", "../..", "..%2F..%2Fetc", "%2Fetc", "a%00b", "C:%5Cx", "x" * 300, "nobody", "%2e%2e", "con", "a%0Ab"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_runs(routes, run, name):
    assert get(routes, f"runs/{name}")[0] in (400, 404)
    status, newest = get(routes, f"runs/{name}?newest=1")
    assert status in (400, 404) or newest == {"name": None}
    assert post(routes, f"runs/{name}/command", {"command": "stop"})[0] in (400, 404)


def test_a_link_does_not_lead_out_of_the_runs(routes, run, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (run.parent / "linked").symlink_to(tmp_path)
    try:
        assert get(routes, "runs/linked")[0] == 404
    finally:
        (run.parent / "linked").unlink()


@pytest.mark.parametrize("since", ["-1", "x", "1e3", "9" * 20, "%D9%A1"])
def test_since_is_a_number(routes, run, since):
    assert get(routes, f"runs/{RUN}?since={since}")[0] == 400


# Grids


@pytest.fixture
def drawn(run: Path) -> str:
    """The name of a page with one cell, drawn in the run."""
    from lora_atelier.training.grid.cells import png_info
    from lora_atelier.training.grid.pages import KEY

    facts = {
        "prompt": "a fox", "seed": 3, "epochs": [], "strengths": [1.0], "scores": {}, "cells": {"0,0": {"file": f"cells/{CELL}"}},
    }  # fmt: skip
    (run / "grids" / "cells").mkdir(parents=True)
    noise_picture((8, 8), 40).save(run / "grids" / "cells" / CELL)
    noise_picture((8, 8), 40).save(run / "grids" / "grid-0123456789ab.png", pnginfo=png_info({KEY: json.dumps(facts)}))
    return "grid-0123456789ab"


CELL = "c" * 24 + ".png"


def test_a_grid_is_looked_at_and_a_cell_marked(routes, drawn):
    assert {"run": RUN, "page": drawn, "prompt": "a fox", "seed": 3} in get(routes, "grids")[1]["pages"]
    for on in (True, False):
        status, answer = post(routes, "grids/favourite", {"run": RUN, "cell": CELL, "on": on})
        assert (status, answer) == (200, {"favourite": on})
        status, page = get(routes, f"grids/page?run={RUN}&page={drawn}")
        assert status == 200 and page["cells"]["0,0"] == {
            "cell": CELL, "favourite": on,
            "picture": {"filename": CELL, "subfolder": f"lora-atelier/{RUN}/grids/cells", "type": "output"},
        }  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_grids(routes, drawn, name):
    assert get(routes, f"grids/page?run={name}&page={drawn}")[0] == 400
    assert get(routes, f"grids/page?run={RUN}&page={name}")[0] == 400
    for values in (
        {"run": name, "cell": CELL, "on": True},
        {"run": RUN, "cell": name, "on": True},
        {"run": RUN, "cell": CELL, "on": 1},
    ):
        assert post(routes, "grids/favourite", values)[0] == 400


def test_a_mean_is_kept_as_one_lora(routes):
    from lora_atelier.training import host
    from safetensors.torch import load_file, save_file

    sources = [host.loras_folder() / f"routes-{number:06d}.safetensors" for number in (1, 2)]
    kept = host.all_loras_folder() / "routes-mean-1-2.safetensors"
    for source in sources:
        save_file({"lora_unet_a.lora_down.weight": torch.ones(2, 3), "lora_unet_a.lora_up.weight": torch.ones(4, 2)}, source)
    names = [host.lora_name(source) for source in sources]
    try:
        status, answer = post(routes, "loras/keep", {"mean": names, "name": "routes-mean-1-2"})
        assert (status, answer) == (200, {"lora": kept.name}) and kept.name in host.lora_files()
        assert load_file(kept)["lora_unet_a.lora_down.weight"].shape == (4, 3)
        for several in (names[:1], [], names[0], [names[0], "../secret.safetensors"], [names[0], 1], names * 501):
            assert post(routes, "loras/keep", {"mean": several, "name": "x"})[0] == 400
    finally:
        for path in (*sources, kept):
            path.unlink(missing_ok=True)


def test_a_chosen_lora_is_listed_at_once(routes):
    from lora_atelier.training import host

    source, kept = host.loras_folder() / "routes-chosen.safetensors", host.all_loras_folder() / "routes kept.safetensors"
    source.write_bytes(b"weights")
    try:
        status, answer = post(routes, "loras/keep", {"lora": host.lora_name(source), "name": "routes kept"})
        assert (status, answer) == (200, {"lora": kept.name}) and kept.read_bytes() == b"weights"
        assert kept.name in host.lora_files()
        source.write_bytes(b"others!")
        status, answer = post(routes, "loras/keep", {"lora": host.lora_name(source), "name": "routes kept"})
        assert status == 400 and "another LoRA" in answer["error"] and kept.read_bytes() == b"weights"
        for lora in ("../secret.safetensors", "/etc/passwd", "nowhere.safetensors"):
            assert post(routes, "loras/keep", {"lora": lora, "name": "x"})[0] == 400
        for name in ("../x", "a/b", "con", "a\\b", "x" * 150):
            assert post(routes, "loras/keep", {"lora": host.lora_name(source), "name": name})[0] == 400
    finally:
        source.unlink()
        kept.unlink(missing_ok=True)


# Who may ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({}, 415),
        ({**JSON, "Origin": "http://evil.example"}, 403),
        ({**JSON, "Origin": "null"}, 403),
        ({**JSON, "Origin": "http://[bad"}, 403),
        ({**JSON, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**JSON, "Sec-Fetch-Site": "same-site"}, 403),
        ({**JSON, "Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({**JSON, "Host": "localhost:1", "Origin": "http://localhost:1", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_another_sites_page_is_refused(routes, run, headers, status):
    told: list[dict[str, Any]] = []
    with live.entered(live.Live(RUN, told.append), lambda error: False) as now:
        assert post(routes, f"runs/{RUN}/command", b'{"command": "stop"}', headers)[0] == status
        assert now.pop_commands() == ({"stop"} if status == 200 else set())


def test_huge_requests_are_cut_off(routes):
    assert post(routes, "outlook", b'{"widgets": "' + b"x" * 70_000 + b'"}')[0] == 413

    async def without_length(client: Any) -> int:
        async def chunks():
            for _ in range(100):
                yield b" " * 1000

        async with client.post("/lora_atelier/outlook", data=chunks(), headers=JSON) as answer:
            return answer.status

    assert asked(routes, without_length) == 413


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[]", b"1", b"{", b"[" * 60_000, b'{"widgets": NaN}', b"null"])
def test_what_is_no_object_is_refused(routes, body):
    assert post(routes, "outlook", body)[0] == 400


@pytest.mark.parametrize(
    "widgets",
    [
        {"rank": "16"}, {"rank": True}, {"rank": 1.5}, {"rank": None}, {"rank": [16]}, {"learning_rate": "x"},
        {"learning_rate": 10**400}, {"gradient_checkpointing": 1}, {"schedule": 3}, {"optimizer_args": {"a": 1}},
        {"no_such": 1}, {"__class__": "x"}, {"network": {}}, {"name": "x" * 20_000}, {"seed": 2**70}, [], "x", 3,
    ],
)  # fmt: skip
def test_wrong_types_are_refused(routes, widgets):
    status, answer = post(routes, "outlook", {"widgets": widgets})
    assert status == 400 and answer["error"]


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=10), PLAIN, max_size=3)
NAMES = st.sampled_from(
    ["rank", "epochs", "max_steps", "warmup_steps", "learning_rate", "schedule", "cycles", "rules", "optimizer_args", "name", "x"]
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "widgets": VALUES | st.dictionaries(NAMES, VALUES, max_size=4),
            "datasets": VALUES | st.lists(st.dictionaries(st.sampled_from(["folder", "resolution", "crop"]), VALUES), max_size=2),
            "model": VALUES | st.fixed_dictionaries({"widget": VALUES, "file": VALUES}),
            "widget": VALUES, "file": VALUES, "command": VALUES,
        },
    )
)  # fmt: skip
def test_nothing_that_is_asked_breaks_the_server(routes, body):
    async def every(client: Any) -> list[int]:
        paths = ("outlook", "family", "start", f"runs/{RUN}/command")
        return [(await client.post(f"/lora_atelier/{path}", data=json.dumps(body), headers=JSON)).status for path in paths]

    assert max(asked(routes, every)) < 500


def test_captions_are_asked_for_and_written_over_http(routes: Any, folder: str) -> None:
    async def work(client: Any) -> Any:
        widgets = {"folder": folder, "resolution": 128}
        listed = await (await client.post("/lora_atelier/pictures", json={"settings": widgets})).json()
        first = listed["pictures"][0]
        place = {"folder": folder, "extension": ".txt", "nested": False}
        edit = {"picture": first["picture"], "caption": "by hand", "version": first["version"]}
        written = await client.post("/lora_atelier/captions", json={**place, "edits": [edit]})
        again = await client.post("/lora_atelier/captions", json={**place, "edits": [edit]})
        undone = await client.post("/lora_atelier/captions", json={**place, "edits": (await written.json())["undo"]})
        query = {"folder": folder, "picture": first["picture"]}
        small = await client.get("/lora_atelier/thumbnail", params=query)
        outside = await client.get("/lora_atelier/thumbnail", params={**query, "picture": "../../models/x"})
        question = {"captions": {"a": "red"}, "operation": "add", "text": "round"}
        changed = await (await client.post("/lora_atelier/captions/change", json=question)).json()
        foreign = await client.post(
            "/lora_atelier/captions", json={**place, "edits": [edit]}, headers={"Origin": "https://elsewhere.example"}
        )
        error = (await again.json())["error"]
        return (
            len(listed["pictures"]),
            written.status,
            again.status,
            error,
            undone.status,
            small,
            outside.status,
            changed,
            foreign.status,
        )

    count, written, again, error, undone, small, outside, changed, foreign = asked(routes, work)
    assert (count, written, again, undone, outside, foreign) == (5, 200, 409, 200, 404, 403)
    assert "0.png changed on the disk" in error
    assert small.status == 200 and small.content_type == "image/jpeg"
    assert changed == {"captions": {"a": "red, round"}}


def test_a_folder_whose_films_are_read_is_in_the_way_of_no_other_panel(
    routes: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, read = threading.Event(), threading.Event()
    monkeypatch.setattr(routes.caption_routes, "pictures", lambda body: begun.set() or {"waited": read.wait(60)})

    async def work(client: Any) -> tuple[Any, Any]:
        pictures = asyncio.create_task(client.post("/lora_atelier/pictures", json={}))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        state = await asyncio.wait_for(client.get(f"/lora_atelier/runs/{RUN}"), 30)
        read.set()
        return (await state.json())["name"], await (await pictures).json()

    assert asked(routes, work) == (RUN, {"waited": True})
