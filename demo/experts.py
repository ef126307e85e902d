"""The template "Both halves of Wan 2.2 14B": the models of much and of little noise, each trained by itself, drawing together.

Standard library only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from .templates import COLOURS, FILMS, PICTURES, TRIGGER, WAN, WAN22, Canvas, Description, File

TITLE = "Both halves of Wan 2.2 14B"
BOUNDARY = 0.875
"""Noise level at which the second takes over, as Wan 2.2's own configuration has it for making films from text
(https://github.com/Wan-Video/Wan2.2/blob/main/wan/configs/wan_t2v_A14B.py)."""
SHIFT, STEPS = 8.0, 20
"""As the host's own template draws. At half of the steps the level is 8 x 0.5 / (1 + 7 x 0.5) = 0.889, just before the
boundary."""
HALVES = ("high", "low")
MODELS = tuple(File(f"wan2.2_t2v_{half}_noise_14B_fp8_scaled.safetensors", "diffusion_models", WAN22) for half in HALVES)
TEXT = File("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders", WAN)
VAE = File("wan_2.1_vae.safetensors", "vae", WAN)
DESCRIPTION = Description("Wan 2.2 14B", (*MODELS, TEXT, VAE), "wan", start="Wan 14B", rate=16)
COLUMNS = (
    ("Start here", 0, 500), ("1. Models", 520, 380), ("2. Films with captions", 920, 400),
    ("3. Train the high-noise half", 1340, 820),
    ("4. Train the low-noise half", 2180, 820), ("5. Draw with both", 3020, 1200),
)  # fmt: skip
CARRIED_ON = {"add_noise": "disable", "start_at_step": STEPS // 2, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
BEGUN = {"add_noise": "enable", "start_at_step": 0, "end_at_step": STEPS // 2, "return_with_leftover_noise": "enable"}
LEVELS = {"high": {"lowest_level": BOUNDARY}, "low": {"highest_level": BOUNDARY}}


def build(info: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The graph as the canvas stores it; see ``templates.build``."""
    values = {kind: {**of_node, **DESCRIPTION.of_films.get(kind, {})} for kind, of_node in values.items()}
    graph, prompt = Canvas(info), DESCRIPTION.prompts[0]
    graph.note("What to put where", _what(), 20, 80, 460, 640)
    models = [
        graph.node(
            "UNETLoader", 540, 80 + 160 * i, 340, 90, {"unet_name": file.name, "weight_dtype": "default"}, title=f"{half} noise"
        )
        for i, (half, file) in enumerate(zip(HALVES, MODELS, strict=True))
    ]  # fmt: skip
    text = graph.node("CLIPLoader", 540, 420, 340, 120, {"clip_name": TEXT.name, "type": "wan"})
    vae = graph.node("VAELoader", 540, 620, 340, 60, {"vae_name": VAE.name})
    data = graph.node("LoadDataset", 940, 80, 360, 400, {**values["LoadDataset"], "folder": FILMS})
    captions = graph.node(
        "AutoCaption", 940, 550, 360, 420, {**values["AutoCaption"], "trigger": TRIGGER, "pattern": "{folder}"}, dataset=(data, 0)
    )
    drawing = []
    for i, (half, model) in enumerate(zip(HALVES, models, strict=True)):
        recipe = {**values["ConfigureLoRA"], "preset": DESCRIPTION.starting, "name": f"my-wan-2-2-{half}", **LEVELS[half]}
        config = graph.node("ConfigureLoRA", 1360 + 840 * i, 80, 360, 890, recipe)
        # One half alone draws no film, so neither leaves samples.
        train = graph.node(
            "TrainLoRA", 1760 + 840 * i, 80, 380, 890, {**values["TrainLoRA"], "preview_prompt": prompt, "preview_steps": 0},
            title=f"Train {half} noise", model=(model, 0), clip=(text, 0), vae=(vae, 0), dataset=(captions, 0),
            config=(config, 0),
        )  # fmt: skip
        drawing.append(graph.node("ModelSamplingSD3", 3040, 80 + 130 * i, 300, 80, {"shift": SHIFT}, model=(train, 3)))
    said = [
        graph.node("CLIPTextEncode", 3040, 350 + 200 * i, 300, 160, {"text": words}, clip=(text, 0), title=title)
        for i, (title, words) in enumerate((("Prompt", prompt), ("Negative prompt", "")))
    ]
    size = {"width": 640, "height": 384, "length": values["EpochWeightGrid"]["frames"], "batch_size": 1}
    latent = graph.node("EmptyHunyuanLatentVideo", 3040, 760, 300, 150, size)
    how = {"noise_seed": 1, "steps": STEPS, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple"}
    texts: dict[str, Any] = {"positive": (said[0], 0), "negative": (said[1], 0)}
    for i, (model, part) in enumerate(zip(drawing, (BEGUN, CARRIED_ON), strict=True)):
        latent = graph.node(
            "KSamplerAdvanced", 3380, 80 + 380 * i, 320, 340, {**how, **part}, model=(model, 0), latent_image=(latent, 0), **texts
        )
    pictures = graph.node("VAEDecode", 3740, 80, 200, 60, {}, samples=(latent, 0), vae=(vae, 0))
    film = {"filename_prefix": "wan-2-2", "fps": 16.0, "lossless": False, "quality": 90, "method": "default"}
    graph.node("SaveAnimatedWEBP", 3740, 200, 440, 500, film, images=(pictures, 0))
    return graph.stored(COLUMNS, (*COLOURS, COLOURS[-1]), str(uuid.uuid5(uuid.NAMESPACE_URL, "lora-atelier/experts")))


def _what() -> str:
    rows = [f"| [{file.name}]({file.page}) | `models/{file.folder}` |" for file in DESCRIPTION.files]
    return "\n".join([
        f"## {TITLE}",
        "| what | where in ComfyUI |", "| --- | --- |",
        f"| about {PICTURES} films of a few seconds, each with its caption in a `.txt` beside it | `{FILMS}` |", *rows, "",
        f"Wan 2.2 14B is two models: one draws while there is much noise, the other from the level {BOUNDARY:g} "
        f"on (0.9 in the models that "
        "begin with a picture). Each is trained by itself, at its own levels alone, and its LoRA is a file of its own: "
        f"**lowest_level** of the first and **highest_level** of the second **Configure LoRA** are {BOUNDARY:g}.",
        "",
        f"1. Press `R`, choose the folder in **Load Dataset** and the files in the loaders; write a word of your own in place of "
        f"`{TRIGGER}`, in **Auto Caption** and in the prompt.",
        "2. Queue. One half after the other is trained; a training that is finished is not trained again. Mute "
        "one **Train LoRA** "
        "to train the other alone.",
        "3. The film is drawn by both with their last LoRAs, as two **KSampler (Advanced)**: the first half of "
        "the steps by the one, the "
        "rest by the other.",
        "4. Composition and motion are learnt by the high-noise half, details by the low-noise half: a style "
        "may do with the second, a "
        "movement with the first.",
    ])  # fmt: skip
