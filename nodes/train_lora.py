"""TrainLoRA: what is wired in is trained; what comes out can be sampled in the same run."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from .io_types import CATEGORY, CONFIG, DATASET, EPOCHS, LORA_MODEL, LOSS_MAP, folded, searched

KEEP_STATE = ["delete when finished", "keep"]


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..training import host

        return io.Schema(
            node_id="TrainLoRA",
            display_name="Train LoRA (Atelier)",
            **searched("train lora", "lora trainer", "lora training", "fine-tune", "finetune", "dreambooth", "kohya"),
            category=CATEGORY,
            description="Trains a LoRA on the loaded model, without a second copy of it. Cancel keeps what was learnt: queue "
            "again with the same settings and it goes on from there.",
            inputs=folded([
                io.Model.Input("model", tooltip="The model to learn on. It stays as it is."),
                io.Clip.Input("clip", tooltip="The text encoder that reads the captions."),
                io.Vae.Input("vae", tooltip="Turns the pictures into latents."),
                DATASET.Input("dataset", tooltip="Pictures with captions, from Load Dataset and Auto Caption."),
                CONFIG.Input("config", tooltip="The recipe, from Configure LoRA."),
                io.Combo.Input(
                    "when_interrupted", options=["continue", "continue with the changes", "start over"], default="continue",
                    tooltip="Whether an earlier run of this name goes on if nothing has changed that decides the LoRA, goes on "
                    "with what has changed since (captions, pictures, rates, length), or a new one begins beside it.",
                ),
                io.String.Input(
                    "preview_prompt", default="", multiline=True,
                    tooltip="Prompts of the samples, one a line, drawn at every save. Empty: the first caption of the dataset.",
                ),
                io.String.Input("preview_negative", default="", tooltip="Negative prompt of the preview."),
                io.Int.Input("preview_steps", default=20, min=0, max=1000, tooltip="Steps of the preview; 0: none."),
                io.Float.Input("preview_cfg", default=4.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance of the preview."),
                io.Combo.Input("preview_sampler", options=host.samplers(), default="euler", tooltip="Sampler of the preview."),
                io.Combo.Input(
                    "preview_scheduler", options=host.schedulers(), default="normal", tooltip="Scheduler of the preview."
                ),
                io.Int.Input(
                    "preview_seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="Seed of the preview: one seed for all epochs, so that they can be compared.",
                ),
                io.Int.Input(
                    "preview_width", default=0, min=0, max=16384, step=8, optional=True,
                    tooltip="Width of the preview in pixels; 0: the size that most of the dataset has.",
                ),
                io.Int.Input(
                    "preview_height", default=0, min=0, max=16384, step=8, optional=True,
                    tooltip="Height of the preview in pixels; 0: the size that most of the dataset has.",
                ),
                io.String.Input(
                    "about", default="", multiline=True, optional=True,
                    tooltip="What the LoRA files say of themselves to sites and model managers, a line each: title, trigger, "
                    "description, author, license, tags, usage_hint; as in 'author: Ada'. Empty: the name, and as trigger what "
                    "every caption begins with.",
                ),
                io.Int.Input(
                    "thumbnail", default=256, min=0, max=1024, step=64, optional=True,
                    tooltip="Pixels of the preview within each LoRA file, which sites and managers show; 0: none. The preview "
                    "lies beside the file as well.",
                ),
                io.Combo.Input(
                    "keep_state", options=KEEP_STATE, default=KEEP_STATE[0], optional=True,
                    tooltip="What a run needs to go on, several times the LoRA's size. 'delete when finished': it goes after the "
                    "last step, once the last file is found whole; more epochs then mean a new run. 'keep': the run can be made "
                    "longer later. A run that was cancelled or ended early always keeps it.",
                ),
                io.Image.Input(
                    "preview_control", optional=True,
                    tooltip="For models that edit: the picture beside each line of preview_prompt, as a batch. Without it the "
                    "samples stand beside the control pictures of the dataset's first pictures.",
                ),
                io.Model.Input(
                    "preview_model", optional=True,
                    tooltip="The model to draw the samples with, where it is another than the one to learn on: the distilled "
                    "model that was made from it, or this model without a training adapter. It is handed on with the LoRA too.",
                ),
                io.Sampler.Input(
                    "sampler", optional=True,
                    tooltip="For the samples, in place of preview_sampler: a sampler with settings of its own, of any node.",
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True,
                    tooltip="For the samples, in place of preview_scheduler and preview_steps: the noise levels that any "
                    "scheduler node gives. preview_steps 0 still draws none.",
                ),
                io.Guider.Input(
                    "guider", optional=True,
                    tooltip="For the samples, in place of preview_cfg: how prompts guide the model. They are drawn with the "
                    "model that learns (or preview_model) and the prompts of this node; all else in the guider stays.",
                ),
                io.Int.Input(
                    "preview_frames", default=1, min=1, max=1000, step=4, optional=True,
                    tooltip="For video models: frames of each sample, such as 33 or 81; most models want 4 times a number and 1 "
                    "more. 1: a picture. A film's middle frame stands where nothing moves.",
                ),
                io.Float.Input(
                    "preview_rate", default=16.0, min=1.0, max=120.0, step=1.0, optional=True,
                    tooltip="Frames a second of samples that are films: 16 for Wan 2.1 and 2.2 14B, 24 for Wan 2.2 5B and "
                    "HunyuanVideo.",
                ),
            ], ("preview_negative", "preview_width", "preview_height", "about", "thumbnail", "preview_frames", "preview_rate")),
            outputs=[
                EPOCHS.Output(display_name="epochs", tooltip="All saved LoRAs of the run, for Epoch Weight Grid."),
                LORA_MODEL.Output(display_name="lora", tooltip="The final LoRA, for the stock Load LoRA Model and Save LoRA."),
                LOSS_MAP.Output(display_name="loss", tooltip="The loss of every step, for the stock Plot Loss Graph."),
                io.Model.Output(display_name="model", tooltip="The model with the final LoRA at strength 1."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the final LoRA at strength 1."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes when LoRA files that this node has handed on are gone, so that it looks after the run again."""
        from ..training.runs.run import SAVED_LORAS

        return SAVED_LORAS.losses()

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        config: Any,
        when_interrupted: str,
        preview_prompt: str,
        preview_negative: str,
        preview_steps: int,
        preview_cfg: float,
        preview_sampler: str,
        preview_scheduler: str,
        preview_seed: int,
        preview_width: int = 0,
        preview_height: int = 0,
        about: str = "",
        thumbnail: int = 256,
        keep_state: str = KEEP_STATE[0],
        preview_control: Any = None,
        preview_model: Any = None,
        sampler: Any = None,
        sigmas: Any = None,
        guider: Any = None,
        preview_frames: int = 1,
        preview_rate: float = 16.0,
    ) -> io.NodeOutput:
        from ..training import host, job, prompting
        from ..training.config.refusal import refuse
        from ..training.grid.origin import lora_names, model_name
        from ..training.runs.card import Card

        refuse(keep_state not in KEEP_STATE, f"keep_state: {keep_state!r} is none of {', '.join(KEEP_STATE)}.")
        card = Card.read(about)
        preview = job.Preview(
            preview_prompt, preview_negative, preview_steps, preview_cfg, preview_sampler, preview_scheduler,
            preview_seed, preview_width, preview_height, tuple(prompting.apart(preview_control, "preview_control")),
            host.Wired(sampler, sigmas, guider), preview_frames, preview_rate,
        )  # fmt: skip
        wrapped = host.Model(model)
        drawn = None if preview_model is None else host.Model(preview_model)
        names = cls.hidden.prompt, cls.hidden.unique_id
        trained = job.run_training(
            wrapped,
            host.TextEncoder(clip),
            host.PictureCodec(vae),
            dataset,
            config,
            preview=preview,
            when=when_interrupted,
            graph=graph_of(cls.hidden),
            show=host.status_of(cls.hidden.unique_id),
            node=str(cls.hidden.unique_id),
            named=job.Named(
                model_name(*names), lora_names(*names), model_name(*names, "preview_model"), lora_names(*names, "preview_model")
            ),
            preview_model=drawn,
            card=card,
            thumbnail=thumbnail,
            keep_state=keep_state == "keep",
        )
        model_out, clip_out = (drawn or wrapped).with_lora(clip, trained.tensors, 1.0)
        return io.NodeOutput(trained.epochs, trained.tensors, {"loss": trained.losses}, model_out, clip_out)


def graph_of(hidden: Any) -> dict[str, str]:
    """The workflow and the prompt as the canvas sent them, as metadata texts."""
    graph = {"prompt": json.dumps(hidden.prompt)} if hidden.prompt else {}
    extra = hidden.extra_pnginfo or {}
    return {**graph, **{k: json.dumps(v) for k, v in extra.items()}}
