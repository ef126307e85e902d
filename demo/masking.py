"""The template "Learn what a word names": SAM 3 finds it in every picture, and the rest is held to what the model drew.

Standard library only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from .templates import COLOURS, DESCRIPTIONS, HUB, PROMPTS, SHARED, TRIGGER, Canvas, File, columns, finish, loaders

TITLE = "Learn what a word names"
FOLDER = "my-subject"
"""Inside ComfyUI's input folder, as the stock node lists it."""
WORD = "person"
SEGMENTER = File("sam3.1_multiplex_fp16.safetensors", "checkpoints", f"{HUB}/Comfy-Org/sam3.1")
DESCRIPTION = next(one for one in DESCRIPTIONS if one.model == "SDXL")
COLUMNS = columns("2. Pictures and their masks")


def build(info: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The graph as the canvas stores it; see ``templates.build``."""
    graph = Canvas(info)
    graph.note("What to put where", _what(), 20, 80, 460, 660)
    model, clip, vae = loaders(graph, DESCRIPTION)
    segmenter = graph.node("CheckpointLoaderSimple", 540, 240, 340, 100, {"ckpt_name": SEGMENTER.name}, title="SAM 3")
    pictures = graph.node("LoadImageTextDataSetFromFolder", 940, 80, 360, 80, {"folder": FOLDER})
    word = graph.node(
        "CLIPTextEncode", 940, 220, 360, 140, {"text": WORD}, title="What is learnt of the pictures", clip=(segmenter, 1)
    )
    masks = graph.node(
        "SAM3_Detect", 940, 420, 360, 200, {}, model=(segmenter, 0), image=(pictures, 0), conditioning=(word, 0)
    )  # fmt: skip
    shown = graph.node("MaskToImage", 940, 680, 360, 40, {}, mask=(masks, 0))
    graph.node("PreviewImage", 1340, 700, 360, 270, {}, title="The masks", images=(shown, 0))
    data = graph.node(
        "DatasetFromNodes", 1340, 80, 360, 560,
        {**{k: v for k, v in values["LoadDataset"].items() if k in SHARED}, "mask_floor": 0.0},
        images=(pictures, 0), texts=(pictures, 1), masks=(masks, 0),
    )  # fmt: skip
    recipe = {"preset": DESCRIPTION.model, "name": "my-masked", "mask_preservation": 1.0}
    finish(graph, values, (model, clip, vae), data, recipe, [f"{TRIGGER}, {prompt}" for prompt in PROMPTS])
    return graph.stored(COLUMNS, COLOURS, str(uuid.uuid5(uuid.NAMESPACE_URL, "lora-atelier/masking")))


def _what() -> str:
    rows = [f"| [{file.name}]({file.page}) | `models/{file.folder}` |" for file in (*DESCRIPTION.files, SEGMENTER)]
    return "\n".join([
        f"## {TITLE}",
        "| what | where in ComfyUI |", "| --- | --- |",
        f"| pictures of one person or thing, and a `.txt` beside each | `input/{FOLDER}` |", *rows, "",
        "*SAM3 Detect* finds what the word names and masks it: white is learnt. Outside of the masks `mask_preservation` holds "
        "the model to what it drew before, so that the LoRA takes no background along.",
        "",
        f"1. Write the word for what is learnt (`{WORD}`, `dog`, `dress`), and a word of your own in place of `{TRIGGER}`, with "
        "which the captions begin.",
        "2. Queue, and look at the masks before the run is long. One that is black all over is named by **Dataset From Nodes**: "
        "leave that picture out, lower the `threshold`, or take another word.",
        "3. *Remove Background* with `birefnet.safetensors` takes whatever stands in front, without a word. Any other node that "
        "gives a MASK will do.",
        "",
        "*SAM3 Detect* and *Remove Background* are in ComfyUI since 0.30. On an older one save the masks as `name.mask.png` "
        "beside the pictures and set `masks` of **Load Dataset** to *files*.",
    ])  # fmt: skip
