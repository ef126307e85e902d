"""ConfigureLoRA: widgets to a validated, frozen configuration."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..training import config as settings
from ..training.errors import AtelierError
from .wires import CATEGORY, CONFIG


class ConfigureLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConfigureLoRA",
            display_name="Configure LoRA",
            category=CATEGORY,
            description="How the LoRA is trained: its size, its speed of learning, its length, its name.",
            inputs=[
                io.String.Input("name", default="my-lora", tooltip="File name of the LoRA, without extension."),
                io.Int.Input("rank", default=16, min=1, max=1024, tooltip="Width of the LoRA: how much it can learn."),
                io.Float.Input(
                    "alpha", default=16.0, min=0.0, max=1024.0, step=0.5,
                    tooltip="The LoRA's output is scaled by alpha / rank. Half the rank to the rank is usual; 0 means the rank.",
                ),
                io.Combo.Input(
                    "targets", options=list(get_args(settings.Targets)), default="attention + feed-forward",
                    tooltip="Which layers of the model learn. Attention alone is gentler; 'all' adds convolutions.",
                ),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-8, max=10.0, step=1e-8, round=1e-8,
                    tooltip="Peak learning rate. 1e-4 is usual for AdamW; too high over-fits or breaks, too low learns nothing.",
                ),
                io.Combo.Input(
                    "optimizer", options=list(get_args(settings.OptimizerName)), default="AdamW",
                    tooltip="AdamW is the safe choice. AdamW8bit needs bitsandbytes and a CUDA GPU and saves memory.",
                ),
                io.Combo.Input(
                    "schedule", options=list(get_args(settings.ScheduleName)), default="cosine",
                    tooltip="How the learning rate changes over the run: constant, falling in a line, or along a cosine to 0.",
                ),
                io.Int.Input(
                    "warmup_steps", default=0, min=0, max=100000, tooltip="Steps over which the rate rises from 0 to its peak."
                ),
                io.Int.Input(
                    "epochs", default=10, min=0, max=100000, tooltip="Passes over the dataset, repeats included."
                ),
                io.Int.Input(
                    "max_steps", default=0, min=0, max=10000000,
                    tooltip="If above 0 the run has exactly this many steps, and the epochs are not used.",
                ),
                io.Int.Input(
                    "save_every", default=1, min=1, max=100000,
                    tooltip="Keep the LoRA of every N-th epoch, to compare them in the grid. The last one is always kept.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="Same seed, same machine, same LoRA. Seeds the LoRA's start, the order of pictures and the noise.",
                ),
                io.Combo.Input(
                    "precision", options=list(get_args(settings.Precision)), default="auto",
                    tooltip="Number format of the computation. auto: as ComfyUI loaded the model. The LoRA itself is fp32.",
                ),
                io.Combo.Input(
                    "save_precision", options=list(get_args(settings.SavePrecision)), default="fp16",
                    tooltip="Number format in the file. fp16 is understood everywhere.",
                ),
                io.Combo.Input(
                    "noise_levels", options=list(get_args(settings.Levels)), default="auto",
                    tooltip="At which noise levels the model practises. auto takes what suits the loaded model.",
                ),
                io.Float.Input(
                    "weight_decay", default=0.01, min=0.0, max=0.99, step=0.001,
                    tooltip="Pulls the LoRA's weights towards 0 a little at every step.",
                ),
                io.Float.Input(
                    "max_grad_norm", default=1.0, min=0.0, max=1000.0, step=0.1,
                    tooltip="Longer gradients are shortened to this length; 0 switches clipping off.",
                ),
                io.String.Input(
                    "comment", default="", optional=True,
                    tooltip="Free text for the LoRA's metadata, for example its trigger word.",
                ),
            ],
            outputs=[CONFIG.Output(display_name="config", tooltip="Connect to Train LoRA.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(build(**widgets))

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """A bad name is shown before anything runs.

        The host would repeat a message for every widget named here, so only the name is. It checks numbers against their limits
        itself, and contradictions are said when the node runs, before training.
        """
        try:
            if name is not None:
                settings.check_run_name(name)
        except AtelierError as error:
            return str(error)
        return True


def build(
    name: str = "my-lora",
    rank: int = 16,
    alpha: float = 16.0,
    targets: settings.Targets = "attention + feed-forward",
    learning_rate: float = 1e-4,
    optimizer: settings.OptimizerName = "AdamW",
    schedule: settings.ScheduleName = "cosine",
    warmup_steps: int = 0,
    epochs: int = 10,
    max_steps: int = 0,
    save_every: int = 1,
    seed: int = 0,
    precision: settings.Precision = "auto",
    save_precision: settings.SavePrecision = "fp16",
    noise_levels: settings.Levels = "auto",
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    comment: str = "",
) -> settings.TrainingConfig:
    """The configuration that these widget values describe; AtelierError with a sentence when they contradict each other."""
    return settings.TrainingConfig(
        name=name,
        network=settings.NetworkConfig(rank, alpha, targets),
        optimizer=settings.OptimizerConfig(optimizer, learning_rate, weight_decay, max_grad_norm, schedule, warmup_steps),
        noise=settings.NoiseConfig(noise_levels),
        length=settings.LengthConfig(epochs, max_steps, save_every),
        precision=precision,
        save_precision=save_precision,
        seed=seed,
        comment=comment,
    )
