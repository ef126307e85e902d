"""The templates "My 20 pictures on ...": one graph a model, made from the descriptions below. Standard library only.

``tests/write_templates.py`` writes them into ``workflows/`` with the values of the starting points.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .workflow import with_widgets

HUB = "https://huggingface.co"
SUBJECT, MEMORY, PICTURES = "style", "16 GB", 20
FOLDER, TRIGGER = "input/my-pictures", "ohwx"
FILMS, CLIP = "input/my-films", 33
"""Frames that clips, samples and cells of films have: two seconds of Wan."""
FILM_SIDE = 512
PROMPTS = ("a lighthouse on a cliff above a stormy sea", "an old woman reading at a window", "a fox in a winter forest")
COLUMNS = (("Start here", 0, 500), ("1. Model", 520, 380), ("2. Pictures with captions", 920, 400), ("3. Train", 1340, 820),
           ("4. Compare epochs and strengths", 2160, 1180))  # fmt: skip
COLOURS = ("#3f789e", "#3f789e", "#88A", "#8A8", "#A88")


@dataclass(frozen=True)
class File:
    """A file that a person has to have."""

    name: str
    folder: str
    """Inside ``models``."""
    page: str
    """Where it is to be had."""


@dataclass(frozen=True)
class Description:
    """What is particular about a model's template."""

    model: str
    """As the starting points call it."""
    files: tuple[File, ...]
    """One is a checkpoint; else the model, its text encoders and its VAE, in this order."""
    text: str = ""
    """The text encoder's type in the loader."""
    note: str = ""
    start: str = ""
    """The starting point, where it is another's."""
    edits: bool = False
    """It learns to make pictures out of others."""
    adapter: File | None = None
    """Lies on the model for training alone."""
    drawn: File | None = None
    """The model that draws, where it is another."""
    rate: int = 0
    """Frames a second that it was made for, where it learns from films; 0: from pictures."""

    @property
    def every(self) -> tuple[File, ...]:
        """All files that a person has to have."""
        return (*self.files, *(file for file in (self.adapter, self.drawn) if file))

    @property
    def draws(self) -> str:
        """The file of the model that draws, for a starting point to know whether it is distilled."""
        return (self.drawn or self.files[0]).name

    @property
    def title(self) -> str:
        return f"My {'films' if self.rate else f'{PICTURES} pairs' if self.edits else f'{PICTURES} pictures'} on {self.model}"

    @property
    def of_films(self) -> dict[str, dict[str, Any]]:
        """What is set otherwise than for pictures, by node; a widget that a node does not have is left out."""
        if not self.rate:
            return {}
        return {
            "LoadDataset": {
                "clip_frames": f"1, {CLIP}",
                "clip_start": "beginning",
                "clip_rate": float(self.rate),
                "resolution": FILM_SIDE,
            },
            "TrainLoRA": {"preview_frames": CLIP, "preview_rate": float(self.rate), "preview_width": 640, "preview_height": 384},
            "EpochWeightGrid": {"frames": CLIP, "width": 640, "height": 384, "strengths": "0.7, 1.0"},
        }

    @property
    def starting(self) -> str:
        return self.start or self.model

    @property
    def prompts(self) -> list[str]:
        return [f"{TRIGGER} style" if self.edits else f"{TRIGGER}, {prompt}" for prompt in PROMPTS[: 1 if self.edits else None]]


def _checkpoint(model: str, name: str, page: str, note: str = "") -> Description:
    return Description(model, (File(name, "checkpoints", page),), note=note)


def _parts(
    model: str, text: str, page: str, network: str, encoders: Sequence[str], vae: str, note: str = "", start: str = "",
    edits: bool = False, adapter: File | None = None, drawn: File | None = None, rate: int = 0, **pages: str,
) -> Description:  # fmt: skip
    """``pages``: of the encoders and the VAE, where they are not on the same one."""
    files = [File(network, "diffusion_models", page)]
    files += [File(name, "text_encoders", pages.get("encoders_at", page)) for name in encoders]
    return Description(
        model, (*files, File(vae, "vae", pages.get("vae_at", page))), text, note, start, edits, adapter, drawn, rate
    )


T5, FLUX_TEXT = "t5xxl_fp8_e4m3fn_scaled.safetensors", f"{HUB}/comfyanonymous/flux_text_encoders"
FLUX_VAE = f"{HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged"
TURBO = File("z_image_turbo_bf16.safetensors", "diffusion_models", f"{HUB}/Comfy-Org/z_image_turbo")
WAN, WAN22 = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged", f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged"
DESCRIPTIONS = (
    _checkpoint("SDXL", "sd_xl_base_1.0.safetensors", f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0"),
    _parts(
        "Z-Image", "lumina2", f"{HUB}/Comfy-Org/Z-Image", "z_image_bf16.safetensors", ["qwen_3_4b.safetensors"], "ae.safetensors",
        "Z-Image-Turbo is distilled: train on Z-Image, and try the LoRA on either.",
    ),
    _parts(
        "Flux dev", "flux", f"{HUB}/black-forest-labs/FLUX.1-dev", "flux1-dev.safetensors",
        ["clip_l.safetensors", "t5xxl_fp8_e4m3fn.safetensors"], "ae.safetensors", encoders_at=FLUX_TEXT,
    ),
    _parts(
        "Qwen-Image", "qwen_image", f"{HUB}/Comfy-Org/Qwen-Image_ComfyUI", "qwen_image_fp8_e4m3fn.safetensors",
        ["qwen_2.5_vl_7b_fp8_scaled.safetensors"], "qwen_image_vae.safetensors",
    ),
    _checkpoint("SD 1.5", "v1-5-pruned-emaonly-fp16.safetensors", f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive"),
    _checkpoint(
        "Illustrious", "Illustrious-XL-v1.1.safetensors", f"{HUB}/OnomaAIResearch/Illustrious-XL-v1.1",
        "It was captioned with tags: a WD tagger in `models/captioners` is the captioner for it.",
    ),
    _checkpoint(
        "Pony", "ponyDiffusionV6XL.safetensors", "https://civitai.com/models/257749",
        "It was captioned with tags, and its prompts begin with `score_9, score_8_up, score_7_up`.",
    ),
    _checkpoint(
        "NoobAI v-pred", "NoobAI-XL-Vpred-v1.0.safetensors", f"{HUB}/Laxhar/noobai-XL-Vpred-1.0",
        "It predicts v, which is told by a mark in the file; it was captioned with tags.",
    ),
    _checkpoint(
        "SD 3.5 medium", "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors", f"{HUB}/Comfy-Org/stable-diffusion-3.5-fp8"
    ),
    _parts(
        "Flux.2 klein 4B", "flux2", f"{HUB}/Comfy-Org/Flux-2-Klein-4B", "flux-2-klein-base-4b.safetensors",
        ["qwen_3_4b.safetensors"], "flux2-vae.safetensors",
        "The klein without *base* is distilled: train on the base, and try the LoRA on either.",
    ),
    _parts(
        "Flux.2 dev", "flux2", f"{HUB}/Comfy-Org/flux2-dev", "flux2_dev_fp8mixed.safetensors",
        ["mistral_3_small_flux2_fp8.safetensors"], "flux2-vae.safetensors",
        "With 32 billion parameters it is for 24 GB and more; klein is its smaller kin.",
    ),
    _parts(
        "Chroma", "chroma", f"{HUB}/Comfy-Org/Chroma1-HD", "Chroma1-HD.safetensors", [T5], "ae.safetensors",
        encoders_at=FLUX_TEXT, vae_at=FLUX_VAE,
    ),
    _parts(
        "Krea 2", "krea2", f"{HUB}/Comfy-Org/Krea-2", "krea2_raw_bf16.safetensors", ["qwen3vl_4b_fp8_scaled.safetensors"],
        "qwen_image_vae.safetensors", "Krea says: train on Raw, draw with Turbo.",
    ),
    _parts(
        "HunyuanImage 2.1", "hunyuan_image", f"{HUB}/Comfy-Org/HunyuanImage_2.1_ComfyUI", "hunyuanimage2.1_bf16.safetensors",
        ["qwen_2.5_vl_7b.safetensors", "byt5_small_glyphxl_fp16.safetensors"], "hunyuan_image_2.1_vae_fp16.safetensors",
    ),
    _parts(
        "Wan 14B", "wan", WAN, "wan2.1_t2v_14B_bf16.safetensors", ["umt5_xxl_fp8_e4m3fn_scaled.safetensors"],
        "wan_2.1_vae.safetensors",
        "Wan 2.2 is two models. Train each by itself: the high-noise one with `lowest_level` 0.875, the low-noise one with "
        "`highest_level` 0.875.",
    ),
    _parts(
        "Anima", "stable_diffusion", f"{HUB}/circlestone-labs/Anima", "anima-base-v1.0.safetensors",
        ["qwen_3_06b_base.safetensors"], "qwen_image_vae.safetensors", "Its makers say: train on the base, not on Turbo.",
    ),
    _parts(
        "Cosmos-Predict2", "cosmos", f"{HUB}/Comfy-Org/Cosmos_Predict2_repackaged", "cosmos_predict2_2B_t2i.safetensors",
        ["oldt5_xxl_fp8_e4m3fn_scaled.safetensors"], "wan_2.1_vae.safetensors",
        encoders_at=f"{HUB}/comfyanonymous/cosmos_1.0_text_encoder_and_VAE_ComfyUI", vae_at=WAN,
    ),
    _checkpoint("Lumina 2", "lumina_2.safetensors", FLUX_VAE),
    _parts(
        "Flux Kontext", "flux", f"{HUB}/Comfy-Org/flux1-kontext-dev_ComfyUI", "flux1-dev-kontext_fp8_scaled.safetensors",
        ["clip_l.safetensors", "t5xxl_fp8_e4m3fn.safetensors"], "ae.safetensors", start="Flux dev", edits=True,
        encoders_at=FLUX_TEXT, vae_at=FLUX_VAE,
    ),
    _parts(
        "Qwen-Image-Edit", "qwen_image", f"{HUB}/Comfy-Org/Qwen-Image-Edit_ComfyUI",
        "qwen_image_edit_2509_fp8_e4m3fn.safetensors", ["qwen_2.5_vl_7b_fp8_scaled.safetensors"], "qwen_image_vae.safetensors",
        "Its text encoder sees the control pictures too. Up to three of them go with a picture: `control/1.png`, "
        "`control/1_2.png`, `control/1_3.png`.", start="Qwen-Image", edits=True,
        encoders_at=f"{HUB}/Comfy-Org/Qwen-Image_ComfyUI", vae_at=f"{HUB}/Comfy-Org/Qwen-Image_ComfyUI",
    ),
    _parts(
        "Z-Image-Turbo", "lumina2", TURBO.page, TURBO.name, ["qwen_3_4b.safetensors"], "ae.safetensors",
        "Turbo is distilled: a LoRA that is trained on it plainly takes the few steps out of it again. So a training adapter "
        "lies on it while the LoRA learns (*Load LoRA* in front of `model`), and is away wherever pictures are drawn: the model "
        "as it comes from its loader goes to `preview_model` and to the grid. That holds for short runs; for long ones train on "
        "Z-Image.",
        start="Z-Image", adapter=File(
            "zimage_turbo_training_adapter_v2.safetensors", "loras", f"{HUB}/ostris/zimage_turbo_training_adapter"
        ),
    ),
    _parts(
        "Z-Image, drawn by Turbo", "lumina2", f"{HUB}/Comfy-Org/Z-Image", "z_image_bf16.safetensors", ["qwen_3_4b.safetensors"],
        "ae.safetensors",
        "The LoRA learns on Z-Image, and Turbo draws with it: in the samples, for which it is at `preview_model`, in the grid, "
        "and at Train LoRA's output `model`. While the LoRA learns Turbo is in main memory. Krea 2, Flux.2 klein, SDXL with a "
        "LoRA for few steps and others are wired alike.", start="Z-Image", drawn=TURBO,
    ),
    _parts(
        "Wan 2.1 1.3B", "wan", WAN, "wan2.1_t2v_1.3B_bf16.safetensors", ["umt5_xxl_fp8_e4m3fn_scaled.safetensors"],
        "wan_2.1_vae.safetensors", "The 14B model learns alike, from the same files but for the model; choose "
        "its starting point.",
        start="Wan 1.3B", rate=16,
    ),
    _parts(
        "Wan 2.2 5B", "wan", WAN22, "wan2.2_ti2v_5B_fp16.safetensors", ["umt5_xxl_fp8_e4m3fn_scaled.safetensors"],
        "wan2.2_vae.safetensors", rate=24,
    ),
    _parts(
        "HunyuanVideo 1.5", "hunyuan_video_15", f"{HUB}/Comfy-Org/HunyuanVideo_1.5_repackaged",
        "hunyuanvideo1.5_720p_t2v_fp16.safetensors",
        ["qwen_2.5_vl_7b_fp8_scaled.safetensors", "byt5_small_glyphxl_fp16.safetensors"], "hunyuanvideo15_vae_fp16.safetensors",
        "Nobody has published settings for it; those of HunyuanImage 2.1 are a beginning.", start="HunyuanImage 2.1", rate=24,
    ),
)  # fmt: skip


SHARED = ("resolution", "batch_size", "repeats", "buckets", "bucket_step", "crop")
"""Settings of Load Dataset that Dataset From Nodes has as well."""


def columns(
    second: str, last: str = "4. Compare epochs and strengths", first: str = "1. Models"
) -> tuple[tuple[str, int, int], ...]:
    """(title, x, width) of the groups of a template that prepares its pictures in two columns, and ends as ``finish`` does."""
    return ("Start here", 0, 500), (first, 520, 380), (second, 920, 820), ("3. Train", 1760, 820), (last, 2600, 1180)


def finish(
    graph: Canvas, values: Mapping[str, Mapping[str, Any]], models: Sequence[tuple[int, int]], data: int,
    recipe: Mapping[str, Any], prompts: Sequence[str], shown: Mapping[str, Any] = MappingProxyType({}),
    wires: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Adds what stands behind the node ``data``: recipe, training, grid and its picture. ``recipe`` and ``shown``: what is set
    otherwise than in ``values`` in *Configure LoRA* and the grid; ``wires``: what training and grid draw with besides."""
    model, clip, vae = models
    config = graph.node("ConfigureLoRA", 1780, 80, 360, 890, {**values["ConfigureLoRA"], **recipe})
    train = graph.node(
        "TrainLoRA", 2180, 80, 380, 890, {**values["TrainLoRA"], "preview_prompt": prompts[0]},
        model=model, clip=clip, vae=vae, dataset=(data, 0), config=(config, 0), **wires,
    )  # fmt: skip
    grid = graph.node(
        "EpochWeightGrid", 2620, 80, 400, 890,
        {**values["EpochWeightGrid"], "prompts": "\n".join(prompts), "seed": 1, **shown},
        model=model, clip=clip, vae=vae, epochs=(train, 0), **wires,
    )  # fmt: skip
    graph.node("PreviewImage", 3060, 80, 700, 890, {}, title="The grid", images=(grid, 0))


def file_name(description: Description) -> str:
    """The template's file, whose name is its title; the numbers keep them in order."""
    return f"{DESCRIPTIONS.index(description) + 1:02} {description.title}"


def build(description: Description, info: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The graph as the canvas stores it. ``info``: the server's ``/object_info``; ``values``: the starting point's, by node."""
    values = {kind: {**of_node, **description.of_films.get(kind, {})} for kind, of_node in values.items()}
    folder = FILMS if description.rate else FOLDER
    graph = Canvas(info)
    graph.note("What to put where", _what(description), 20, 80, 460, 520)
    graph.note("Where the values come from", _why(description, values), 20, 660, 460, 320)
    model, clip, vae = loaders(graph, description)
    learns, draws = model, model
    if description.adapter:
        laid = {"lora_name": description.adapter.name, "strength_model": 1.0}
        learns = graph.node("LoraLoaderModelOnly", 540, 560, 340, 90, laid, title="Only for training", model=model), 0
    if description.drawn:
        other = {"unet_name": description.drawn.name, "weight_dtype": "default"}
        draws = graph.node("UNETLoader", 540, 560, 340, 90, other, title="The model that draws"), 0
    wires: dict[str, Any] = {"preview_model": draws} if draws != learns else {}
    prompts = description.prompts
    data = graph.node("LoadDataset", 940, 80, 360, 400, {**values["LoadDataset"], "folder": folder})
    captions = graph.node(
        "AutoCaption", 940, 550, 360, 420, {**values["AutoCaption"], **_captions(description)}, dataset=(data, 0)
    )
    name = "".join(c if c.isalnum() else "-" for c in f"my-{description.model}".lower()).strip("-")
    config = graph.node(
        "ConfigureLoRA", 1360, 80, 360, 890, {**values["ConfigureLoRA"], "preset": description.starting, "name": name},
        properties={"lora_atelier_start": {"model": description.starting, "subject": SUBJECT, "memory": MEMORY}},
    )  # fmt: skip
    train = graph.node(
        "TrainLoRA", 1760, 80, 380, 890, {**values["TrainLoRA"], "preview_prompt": prompts[0]},
        model=learns, clip=clip, vae=vae, dataset=(captions, 0), config=(config, 0),
        **wires,
    )  # fmt: skip
    grid = graph.node(
        "EpochWeightGrid", 2180, 80, 400, 890, {**values["EpochWeightGrid"], "prompts": "\n".join(prompts), "seed": 1},
        model=draws, clip=clip, vae=vae, epochs=(train, 0),
    )  # fmt: skip
    graph.node("PreviewImage", 2620, 80, 700, 890, {}, title="The grid", images=(grid, 0))
    return graph.stored(COLUMNS, COLOURS, str(uuid.uuid5(uuid.NAMESPACE_URL, f"lora-atelier/{description.model}")))


def _captions(description: Description) -> dict[str, Any]:
    """An instruction is the same for all pairs, until somebody writes others."""
    return {"trigger": "" if description.edits else TRIGGER, "pattern": f"{TRIGGER} style" if description.edits else "{folder}"}


def _what(description: Description) -> str:
    rows = [f"| [{file.name}]({file.page}) | `models/{file.folder}` |" for file in description.every]
    if description.edits:
        return "\n".join(_what_of_pairs(description, rows))
    if description.rate:
        return "\n".join(_what_of_films(description, rows))
    lines = [
        f"## {description.title}",
        "| what | where in ComfyUI |", "| --- | --- |", f"| about {PICTURES} pictures of one style | `{FOLDER}` |", *rows, "",
        f"1. Press `R`, choose the folder in **Load Dataset** and the files in the loaders. Write a word of your own in "
        f"place of "
        f"`{TRIGGER}`: in **Auto Caption** and in both prompts.",
        "2. For a person or an object choose *suited to the model: person* or *: object* as the `preset` of **Configure "
        "LoRA**; for "
        "more or less memory than 16 GB press the button that its panel offers.",
        "3. Captions: with a model in `models/captioners`, choose it in **Auto Caption**; without one the folder's name "
        "is the caption. "
        "*Pictures and captions ...* shows all of them.",
        "4. Queue. The grid shows every epoch at three strengths; pick the earliest that is right.",
        *(["", description.note] if description.note else []),
    ]  # fmt: skip
    return "\n".join(lines)


def _what_of_pairs(description: Description, rows: Sequence[str]) -> list[str]:
    return [
        f"## {description.title}",
        "| what | where in ComfyUI |", "| --- | --- |", f"| about {PICTURES} pictures as they shall become | `{FOLDER}` |",
        f"| what each is to be made from, by the same name | `{FOLDER}/control` |", *rows, "",
        "1. Press `R`, choose the folder in **Load Dataset** and the files in the loaders. The node counts the pairs.",
        f"2. The captions are instructions. Here all of them are `{TRIGGER} style`; write your own in **Auto Caption**, in "
        "*Pictures and captions ...*, or in a `.txt` beside each picture, and in both prompts.",
        "3. Queue. Samples and grid stand beside a control picture of yours; connect a *Load Image* to `preview_control` and "
        "`control` for others.",
        *(["", description.note] if description.note else []),
    ]  # fmt: skip


def _what_of_films(description: Description, rows: Sequence[str]) -> list[str]:
    return [
        f"## {description.title}",
        "| what | where in ComfyUI |", "| --- | --- |",
        f"| about {PICTURES} films of a few seconds, each with its caption in a `.txt` beside it | `{FILMS}` |", *rows, "",
        f"1. Press `R`, choose the folder in **Load Dataset** and the files in the loaders. Write a word of your own in place of "
        f"`{TRIGGER}`: in **Auto Caption** and in both prompts.",
        f"2. `clip_frames` says how long the clips are that are learnt from: 1 frame and {CLIP}, at `clip_rate` frames a second. "
        "Pictures in the folder are clips of one frame. Longer clips need more memory: begin small.",
        f"3. Queue. Samples and cells are films of {CLIP} frames (`preview_frames`, `frames`): samples move in "
        f"**Train LoRA**, the "
        "grid shows the middle frame, *Look and choose ...* the whole film.",
        *(["", description.note] if description.note else []),
        "", "`preset` of **Configure LoRA** has other subjects, and its panel other amounts of memory.",
    ]  # fmt: skip


def _why(description: Description, values: Mapping[str, Mapping[str, Any]]) -> str:
    data, config, grid = values["LoadDataset"], values["ConfigureLoRA"], values["EpochWeightGrid"]
    steps = -(-PICTURES * data["repeats"] // data["batch_size"]) * config["epochs"]
    return (
        f"The starting point *{description.starting}*, {SUBJECT}, {MEMORY} of GPU memory: {data['resolution']} px, rank "
        f"{config['rank']}, rate {config['learning_rate']:g}, {data['repeats']} repeats x {config['epochs']} epochs, which are "
        f"{steps} steps with {PICTURES} {'clips' if description.rate else 'pictures'}. Drawn with "
        f"{grid['sampler_name']} / {grid['scheduler']}, "
        f"{grid['steps']} steps, cfg "
        f"{grid['cfg']:g}.\n\n`docs/presets.md` in the pack's folder names the source of each number and what is our "
        f"own choice. How "
        "long it takes on your GPU is not known before it has begun.\n\nAnother checkpoint than this model's is "
        "noticed, and its own "
        "starting point offered."
    )


def loaders(graph: Canvas, description: Description) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(model, text encoder, VAE) as (node, output)."""
    names = [file.name for file in description.files]
    if len(names) == 1:
        loader = graph.node("CheckpointLoaderSimple", 540, 80, 340, 100, {"ckpt_name": names[0]})
        return (loader, 0), (loader, 1), (loader, 2)
    network, *encoders, vae = names
    model = graph.node("UNETLoader", 540, 80, 340, 90, {"unet_name": network, "weight_dtype": "default"})
    if len(encoders) == 1:
        text = graph.node("CLIPLoader", 540, 240, 340, 120, {"clip_name": encoders[0], "type": description.text})
    else:
        both = {"clip_name1": encoders[0], "clip_name2": encoders[1], "type": description.text}
        text = graph.node("DualCLIPLoader", 540, 240, 340, 140, both)
    return (model, 0), (text, 0), (graph.node("VAELoader", 540, 450, 340, 60, {"vae_name": vae}), 0)


class Canvas:
    """Nodes and links in the making."""

    def __init__(self, info: Mapping[str, Any]):
        self.info = info
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []

    def _add(self, kind: str, x: int, y: int, width: int, height: int, title: str) -> dict[str, Any]:
        number = len(self.nodes) + 1
        node: dict[str, Any] = {
            "id": number, "type": kind, "pos": [x, y], "size": [width, height], "flags": {}, "order": number - 1, "mode": 0,
            "inputs": [], "outputs": [], **({"title": title} if title else {}), "properties": {"Node name for S&R": kind},
        }  # fmt: skip
        self.nodes.append(node)
        return node

    def note(self, title: str, text: str, x: int, y: int, width: int, height: int) -> None:
        self._add("MarkdownNote", x, y, width, height, title).update(widgets_values=[text], properties={})

    def node(
        self, kind: str, x: int, y: int, width: int, height: int, values: Mapping[str, Any], *, title: str = "",
        properties: Mapping[str, Any] | None = None, **sources: tuple[int, int],
    ) -> int:  # fmt: skip
        """Adds a node; ``sources`` are (node, output) by input. Returns its number."""
        node = self._add(kind, x, y, width, height, title)
        info = self.info[kind]
        node.update(with_widgets(node, values, info))
        node["properties"] |= properties or {}
        node["outputs"] = [
            {"name": name, "type": type_, "links": []}
            for name, type_ in zip(info.get("output_name") or info["output"], info["output"], strict=True)
        ]
        for name, (origin, output) in sources.items():
            link = len(self.links) + 1
            place = next(i for i, entry in enumerate(node["inputs"]) if entry["name"] == name)
            node["inputs"][place]["link"] = link
            source = self.nodes[origin - 1]["outputs"][output]
            source["links"].append(link)
            self.links.append([link, origin, output, node["id"], place, source["type"]])
        return int(node["id"])

    def stored(self, columns: Sequence[tuple[str, int, int]], colours: Sequence[str], identity: str) -> dict[str, Any]:
        """The graph, each of its ``columns`` (title, left, width) a group."""
        groups = [
            {"id": i + 1, "title": title, "bounding": [x, 0, width, 1000], "color": colours[i], "font_size": 24, "flags": {}}
            for i, (title, x, width) in enumerate(columns)
        ]
        return {
            "id": identity, "revision": 0, "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": groups, "config": {}, "extra": {"ds": {"scale": 0.5, "offset": [60, 80]}},
            "version": 0.4,
        }  # fmt: skip
