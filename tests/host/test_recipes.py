"""The published recipes' workflows on real servers: those for SD1.5 are trained, those for larger models are accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.demo import workflow as canvas
from lora_atelier.tests import tiny_models
from lora_atelier.tests.host import support
from lora_atelier.tests.host.test_whole_path import pixels, sample_with_lora
from lora_atelier.tests.noise_pictures import noise_picture
from PIL import Image

FOLDERS = {
    "recipe_1_ink_and_lore": ("ink-and-lore",),
    "recipe_2_style_guide": ("style-guide",),
    "recipe_3_hosted_trainer": ("character-square", "character-tall", "woman"),
    "recipe_4_real_life_face": ("image/25_MiraVelden",),
    "recipe_5_sdxl_subject": ("Img/25_ohwx",),
}
MODELS = {
    "checkpoints": ("sd_xl_base_1.0.safetensors",),
    "diffusion_models": ("flux-dev2pro-fp8.safetensors", "flux1-dev.safetensors"),
    "text_encoders": ("clip_l.safetensors", "t5xxl_fp8_e4m3fn.safetensors"),
    "vae": ("ae.safetensors",),
}
SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
# No captioner's weights and no CUDA here; everything else is length and size.
HERE = {("AutoCaption", "captioner"): "file name", ("ConfigureLoRA", "optimizer"): "AdamW"}
SHORT = {("ConfigureLoRA", "max_steps"): 4, ("TrainLoRA", "preview_steps"): 1, ("EpochWeightGrid", "steps"): 1}
SIDES = {"resolution", "bucket_step", "width", "height", "preview_width", "preview_height"}
SMALLER = 8


def prompt_of(host: support.Host, stem: str, overrides: canvas.Overrides) -> dict[str, Any]:
    """The shipped workflow as a prompt, with pictures in the folders that it names and a small SD1.5 where it wants one."""
    for folder in FOLDERS[stem]:
        path = host.base / "input" / folder
        path.mkdir(parents=True, exist_ok=True)
        for i, size in enumerate(((64, 96), (96, 64)) if "tall" in folder else ((64, 64), (80, 80))):
            noise_picture(size, 80, i).save(path / f"portrait_{i}.png")
    checkpoint = host.base / "models" / "checkpoints" / SD15
    if not checkpoint.exists():
        tiny_models.link(tiny_models.cached("sd15"), checkpoint)
    workflow = json.loads((support.ROOT / "workflows" / f"{stem}.json").read_text(encoding="utf-8"))
    return canvas.to_prompt(workflow, host.server.object_info(), overrides)


@pytest.mark.parametrize("host_name", ["new"], indirect=True)  # on the old host the whole path is trained elsewhere
@pytest.mark.parametrize("stem", ["recipe_3_hosted_trainer", "recipe_4_real_life_face"])
def test_it_trains_and_its_lora_works_in_the_stock_loader(host: support.Host, stem: str) -> None:
    if "hosted" in stem:
        pytest.importorskip("smartcrop")
    prompt = prompt_of(host, stem, {**HERE, **SHORT})
    for node in prompt.values():
        node["inputs"].update({
            name: max(value // SMALLER, 64 if name == "resolution" else 0)
            for name, value in node["inputs"].items() if name in SIDES
        })  # fmt: skip
    graph = host.graph()
    graph.prompt = prompt
    entry = host.run(graph)
    (grid,) = [key for key, node in prompt.items() if node["class_type"] == "EpochWeightGrid"]
    page = Image.open(host.server.pictures(entry, grid)[0])
    assert pixels(host.server.pictures(entry, grid)[0]).std() > 5
    axes = json.loads(page.info["lora_atelier.grid"])
    assert [file["step"] for file in axes["epochs"]] == [4] and axes["strengths"][-1] == 1.0
    (config,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "ConfigureLoRA"]
    file = f"lora-atelier/{config['name']}/{config['name']}.safetensors"
    with_lora, without = (pixels(sample_with_lora(host, "sd15", file, strength, f"{stem}-{strength}")) for strength in (1.0, 0.0))
    assert (with_lora != without).any()


@pytest.mark.parametrize("stem", ["recipe_1_ink_and_lore", "recipe_2_style_guide", "recipe_5_sdxl_subject"])
def test_the_server_accepts_it(host: support.Host, stem: str) -> None:
    """Every node, wire and value is one that the server takes; the loaders find empty files, so nothing is trained."""
    for folder, names in MODELS.items():
        for name in names:
            (Path(host.base) / "models" / folder).mkdir(parents=True, exist_ok=True)
            (Path(host.base) / "models" / folder / name).touch()
    prompt = prompt_of(host, stem, {("AutoCaption", "captioner"): "file name"})
    answer = host.server.post("/prompt", {"prompt": prompt, "client_id": host.server.client_id})
    ended = host.server.wait(answer["prompt_id"], 120)
    assert answer["node_errors"] == {}
    failure = support.Failure.failed(ended)
    assert failure.node in ("CheckpointLoaderSimple", "UNETLoader", "DualCLIPLoader", "VAELoader"), failure.message
