"""The template "Enlarge small pictures": an upscale model doubles a folder's pictures on their way into a run.

Standard library only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from .templates import COLOURS, DESCRIPTIONS, HUB, PROMPTS, SHARED, TRIGGER, Canvas, Description, File, columns, finish, loaders

TITLE = "Enlarge small pictures"
FOLDER = "small-pictures"
"""Inside ComfyUI's input folder, as the stock node lists it."""
UPSCALER = File("RealESRGAN_x4plus.safetensors", "upscale_models", f"{HUB}/Comfy-Org/Real-ESRGAN_repackaged")
DESCRIPTION = next(one for one in DESCRIPTIONS if one.model == "SD 1.5")
COLUMNS = columns("2. Enlarge small pictures")


def build(info: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The graph as the canvas stores it; see ``templates.build``."""
    graph = Canvas(info)
    graph.note("What to put where", _what(DESCRIPTION), 20, 80, 460, 620)
    model, clip, vae = loaders(graph, DESCRIPTION)
    upscaler = graph.node("UpscaleModelLoader", 540, 240, 340, 60, {"model_name": UPSCALER.name})
    pictures = graph.node("LoadImageTextDataSetFromFolder", 940, 80, 360, 80, {"folder": FOLDER})
    large = graph.node("ImageUpscaleWithModel", 940, 220, 360, 60, {}, upscale_model=(upscaler, 0), image=(pictures, 0))
    half = {"upscale_method": "lanczos", "scale_by": 0.5}
    scaled = graph.node("ImageScaleBy", 940, 340, 360, 90, half, image=(large, 0))
    data = graph.node(
        "DatasetFromNodes", 1340, 80, 360, 420, {k: v for k, v in values["LoadDataset"].items() if k in SHARED},
        images=(scaled, 0), texts=(pictures, 1),
    )  # fmt: skip
    recipe = {"preset": DESCRIPTION.model, "name": "my-enlarged"}
    finish(graph, values, (model, clip, vae), data, recipe, [f"{TRIGGER}, {prompt}" for prompt in PROMPTS])
    return graph.stored(COLUMNS, COLOURS, str(uuid.uuid5(uuid.NAMESPACE_URL, "lora-atelier/enlarging")))


def _what(description: Description) -> str:
    rows = [f"| [{file.name}]({file.page}) | `models/{file.folder}` |" for file in (*description.files, UPSCALER)]
    return "\n".join([
        f"## {TITLE}",
        "| what | where in ComfyUI |", "| --- | --- |",
        f"| pictures below the size that is trained, and a `.txt` beside each | `input/{FOLDER}` |", *rows, "",
        "**Load Dataset** names pictures that it enlarges more than twice: they are soft, and softness is learnt. Here an "
        "upscale model makes them four times as large, and **Upscale Image By** halves that, which is steadier than four times.",
        "",
        "1. Put only the small pictures into the folder: large ones would be enlarged as well, which takes long. Those go into a "
        "**Load Dataset** of their own, wired into the input `dataset` of **Dataset From Nodes**.",
        f"2. Each picture's caption is the text in its `.txt` file; begin it with a word of your own, in place of `{TRIGGER}` in "
        "both prompts.",
        "3. For faces choose *head* as the `crop` of **Dataset From Nodes**: it cuts the enlarged pictures around the face.",
        "4. Queue, and look at the thumbnails before the run is long: an upscale model invents detail. Another one may suit "
        "drawings better.",
    ])  # fmt: skip
