"""The template "Draw with a guider": samples and grid through the wires that SamplerCustomAdvanced has.

Standard library only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from . import templates
from .templates import COLOURS, DESCRIPTIONS, FOLDER, TRIGGER, Canvas, finish, loaders

TITLE = "Draw with a guider"
DESCRIPTION = next(one for one in DESCRIPTIONS if one.model == "SDXL")
COLUMNS = (
    ("Start here", 0, 500), ("1. Models", 520, 380), ("2. Pictures with captions", 920, 400), ("3. How it is drawn", 1340, 400),
    ("4. Train", 1760, 820), ("5. Compare epochs and strengths", 2600, 1180),
)  # fmt: skip
STEPS = 10
"""For which Align Your Steps has its levels: Sabour, Fidler and Kreis, *Align Your Steps*, arXiv 2404.14507."""


def build(info: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The graph as the canvas stores it; see ``templates.build``."""
    graph = Canvas(info)
    graph.note("What to put where", _what(), 20, 80, 460, 720)
    model, clip, vae = loaders(graph, DESCRIPTION)
    data = graph.node("LoadDataset", 940, 80, 360, 400, {**values["LoadDataset"], "folder": FOLDER})
    captioned = {**values["AutoCaption"], "trigger": TRIGGER, "pattern": "{folder}"}
    captions = graph.node("AutoCaption", 940, 550, 360, 420, captioned, dataset=(data, 0))
    any_text = graph.node("CLIPTextEncode", 1360, 80, 360, 120, {"text": ""}, title="Its text does not count", clip=clip)
    guidance = {"cfg": values["EpochWeightGrid"]["cfg"]}
    guider = graph.node(
        "CFGGuider", 1360, 270, 360, 120, guidance, model=model, positive=(any_text, 0), negative=(any_text, 0)
    )  # fmt: skip
    sampler = graph.node("KSamplerSelect", 1360, 460, 360, 60, {"sampler_name": "dpmpp_2m"})
    levels = {"model_type": "SDXL", "steps": STEPS, "denoise": 1.0}
    sigmas = graph.node("AlignYourStepsScheduler", 1360, 590, 360, 110, levels)
    recipe = {"preset": DESCRIPTION.starting, "name": "my-guided"}
    wires = {"sampler": (sampler, 0), "sigmas": (sigmas, 0), "guider": (guider, 0)}
    finish(graph, values, (model, clip, vae), captions, recipe, DESCRIPTION.prompts, wires=wires)
    return graph.stored(COLUMNS, (*COLOURS, COLOURS[-1]), str(uuid.uuid5(uuid.NAMESPACE_URL, "lora-atelier/guiding")))


def _what() -> str:
    rows = [f"| [{file.name}]({file.page}) | `models/{file.folder}` |" for file in DESCRIPTION.files]
    return "\n".join([
        f"## {TITLE}",
        "| what | where in ComfyUI |", "| --- | --- |", f"| about {templates.PICTURES} pictures of one style | `{FOLDER}` |",
        *rows, "",
        "**Train LoRA** and **Epoch Weight Grid** take what *SamplerCustomAdvanced* takes: a sampler, noise levels and a guider, "
        f"each or all. Here the levels are those of *Align Your Steps*, which no list of schedulers has, in {STEPS} steps.",
        "",
        f"1. Choose the folder in **Load Dataset**; write a word of your own in place of `{TRIGGER}`.",
        "2. The guider says how strongly prompts count. The prompts are those of **Train LoRA** and the grid, and so is the "
        "model with the LoRA on it: connect the same MODEL to the guider and to both.",
        "3. Another guider: *BasicGuider* behind *FluxGuidance* for Flux, whose guidance stays; *PerpNegGuider* or "
        "*DualCFGGuider*, whose further texts stay. Another sampler: one with settings, such as *SamplerDPMPP_SDE*.",
        "4. Queue. Both nodes say which of their widgets are not used, and the pages of the grid name what drew them.",
    ])  # fmt: skip
