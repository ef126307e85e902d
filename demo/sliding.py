"""The template "A slider from prompts": the model draws what the slider is practised on, and a grid shows it from -2 to 2.

Standard library only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from .templates import COLOURS, DESCRIPTIONS, Canvas, columns, finish, loaders

TITLE = "A slider from prompts"
FOLDER = "input/slider/1_person"
TARGET = "a photo of a person"
POSITIVE, NEGATIVE = "a photo of a very old person", "a photo of a very young person"
PROMPTS = ("a photo of a woman in a garden", "a photo of a man reading at a window")
STRENGTHS = "-2, -1, 0, 1, 2"
DESCRIPTION = next(one for one in DESCRIPTIONS if one.model == "SDXL")
DRAWN = 24
"""Pictures that are drawn."""
SAMPLING = {"steps": "steps", "cfg": "cfg", "sampler_name": "sampler_name", "scheduler": "scheduler"}
COLUMNS = columns("2. What the slider does", "4. From -2 to 2", "1. Model")


def build(info: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The graph as the canvas stores it; see ``templates.build``."""
    graph = Canvas(info)
    graph.note("What to put where", _what(), 20, 80, 460, 620)
    model, clip, vae = loaders(graph, DESCRIPTION)
    side = values["LoadDataset"]["resolution"]
    drawn = graph.node(
        "RenderRegularisation", 940, 80, 360, 890,
        {
            "folder": FOLDER, "prompts": TARGET, "count": DRAWN, "width": side, "height": side, "resolution": side, "seed": 1,
            **{ours: values["EpochWeightGrid"][name] for ours, name in SAMPLING.items()},
        },
        model=model, clip=clip, vae=vae,
    )  # fmt: skip
    data = graph.node(
        "SliderDataset", 1340, 80, 360, 560, {"target": TARGET, "positive": POSITIVE, "negative": NEGATIVE}, dataset=(drawn, 0)
    )
    recipe = {
        "preset": DESCRIPTION.model, "name": "my-slider", "rank": 8, "alpha": 8.0, "targets": "attention", "text_encoder": "none",
        "epochs": 0, "max_steps": 800, "save_every": 0, "save_every_steps": 200,
    }  # fmt: skip
    finish(graph, values, (model, clip, vae), data, recipe, PROMPTS, {"strengths": STRENGTHS})
    return graph.stored(COLUMNS, COLOURS, str(uuid.uuid5(uuid.NAMESPACE_URL, "lora-atelier/sliding")))


def _what() -> str:
    rows = [f"| [{file.name}]({file.page}) | `models/{file.folder}` |" for file in DESCRIPTION.files]
    return "\n".join([
        f"## {TITLE}",
        "| what | where in ComfyUI |", "| --- | --- |", *rows, "",
        "No pictures are needed. The LoRA learns to go from what the model draws for the negative prompt to what it draws for "
        "the positive one: more at strength 1, less at -1.",
        "",
        "1. Write into **Slider Dataset** what it works on, and its two ends. They should differ in one thing alone.",
        f"2. **Render Regularisation** draws {DRAWN} pictures of the target, on which the slider is practised; write the same "
        "target there. They stay in the folder and are not drawn again. For another target choose another folder.",
        "3. Queue. The grid shows the slider from -2 to 2. Where too little happens raise `guidance`; where something else "
        "changes along, write it into `preserve` (`male, female`).",
        "",
        "From pairs of pictures instead: a **Load Dataset** in front, with the pictures from before in its folder `control`, and "
        "`source` on *pairs of pictures*.",
        "",
        "The numbers of steps, rank and guidance are those that the method's authors use, or near them.",
    ])  # fmt: skip
