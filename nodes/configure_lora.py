"""ConfigureLoRA: widgets to a validated, frozen configuration."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..training import config as settings
from ..training.config.refusal import text_of
from ..training.config.sweep import Kind, combinations, varied
from ..training.errors import AtelierError
from .io_types import CATEGORY, CONFIG, folded, searched
from .presets import SUITED, preset_names

NOTHING = "(nothing)"
KINDS: dict[str, Any] = {
    "network": settings.NetworkConfig, "text": settings.TextConfig, "optimizer": settings.OptimizerConfig,
    "noise": settings.NoiseConfig, "loss": settings.LossConfig, "length": settings.LengthConfig,
}  # fmt: skip


def _under(part: str, *names: str, **renamed: str) -> dict[str, tuple[str, str]]:
    return {**{name: (part, name) for name in names}, **{widget: (part, field) for widget, field in renamed.items()}}


WIDGETS: dict[str, tuple[str, str]] = {
    **_under(
        "network", "rank", "alpha", "targets", "algorithm", "weight_decompose", "rank_stabilised", "conv_rank", "conv_alpha",
        "lokr_factor", "dropout", "rank_dropout", "module_dropout", "scale_weight_norms", "lora_plus_ratio", "include", "exclude",
        "rules", "start_from",
    ),
    **_under(
        "text", text_encoder="encoders", text_encoder_rate="learning_rate", prompt_syntax="syntax",
        text_encoder_dropout="dropout",
    ),
    **_under(
        "optimizer", "learning_rate", "schedule", "warmup_steps", "weight_decay", "max_grad_norm", "optimizer_args",
        "warmup_share", "min_rate", "min_share", "cycles", "cycle_steps", "power", "accumulate", optimizer="name",
    ),
    **_under(
        "noise", "logit_mean", "logit_std", "sigmoid_scale", "shift", "offset_each_channel", "offset_random",
        "pyramid_iterations", "pyramid_discount", "level_draw",
        noise_levels="levels", lowest_level="lowest", highest_level="highest",
        noise_offset="offset", input_perturbation="perturbation",
    ),
    **_under(
        "loss", "huber_schedule", "huber_threshold", "weighting", "snr_gamma", "preservation", "preservation_prompt",
        "mask_preservation", loss="kind",
    ),
    **_under(
        "length", "epochs", "max_steps", "save_every", "save_every_steps", "keep_last", "sample_every", "sample_every_steps",
        "when_enough", "on_divergence",
    ),
}  # fmt: skip
"""Where each widget's value goes; those that are not here are fields of the recipe itself."""
ADVANCED = frozenset(WIDGETS) - {
    "rank",
    "alpha",
    "targets",
    "learning_rate",
    "optimizer",
    "schedule",
    "epochs",
    "max_steps",
    "save_every",
    "text_encoder",
} | {
    "precision", "save_precision", "comment", "ema_decay", "gradient_checkpointing", "compile", "offload_activations",
    "offload_blocks", "base_weights", "speed", "guidance", "sweep",
}  # fmt: skip
GROUPS: dict[str, str] = {
    **{widget: part for widget, (part, _) in WIDGETS.items() if widget in ADVANCED}, "ema_decay": "optimizer",
    "save_precision": "length", "comment": "length", "guidance": "noise", "sweep": "length",
    **dict.fromkeys(
        ("precision", "gradient_checkpointing", "compile", "offload_activations", "offload_blocks", "base_weights", "speed"),
        "memory",
    ),
}  # fmt: skip
"""Under which heading the canvas shows each of these: ``js/lib/groups.js`` has their titles and order."""


class ConfigureLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConfigureLoRA",
            display_name="Configure LoRA",
            **searched("lora settings", "training settings", "lora config", "learning rate", "optimizer", "rank", "preset"),
            category=CATEGORY,
            description="How the LoRA is trained: its size, its speed of learning, its length, its name.",
            inputs=folded([
                io.Combo.Input(
                    "preset", options=preset_names(), default=SUITED,
                    tooltip="Choosing one on the canvas sets this node and those it works with: resolution, length, samples "
                    "too. What the widgets say counts, and can be changed after. 'suited to the model' looks at the "
                    "loader in front of Train LoRA and at this computer's memory.",
                ),
                io.String.Input("name", default="my-lora", tooltip="File name of the LoRA, without extension."),
                io.Int.Input("rank", default=16, min=1, max=1024, tooltip="Width of the LoRA: how much it can learn."),
                io.Float.Input(
                    "alpha", default=16.0, min=0.0, max=1024.0, step=0.5,
                    tooltip="The LoRA's output is scaled by alpha / rank. Half the rank to the rank is usual; 0 means the rank.",
                ),
                io.Combo.Input(
                    "targets", options=list(get_args(settings.Targets)), default="attention + feed-forward",
                    tooltip="Which layers of the model learn. Attention alone is gentler; 'all' adds convolutions; 'none' trains "
                    "the text encoder alone.",
                ),
                io.Float.Input(
                    "learning_rate", default=1e-4, min=1e-8, max=10.0, step=1e-8, round=1e-8,
                    tooltip="Peak learning rate. 1e-4 is usual for AdamW; too high over-fits or breaks, too low learns nothing.",
                ),
                io.Combo.Input(
                    "optimizer", options=list(get_args(settings.OptimizerName)), default="AdamW",
                    tooltip="AdamW is the safe choice; AdamW8bit saves memory on CUDA GPUs. Both Prodigys and D-adaptation find "
                    "the rate themselves: set learning_rate to 1. Lion wants a tenth of AdamW's rate, Muon the same.",
                ),
                io.Combo.Input(
                    "schedule", options=list(get_args(settings.ScheduleName)), default="cosine",
                    tooltip="How the learning rate changes over the run. Minimum and cycles are among the advanced widgets.",
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
                    "save_every", default=1, min=0, max=100000,
                    tooltip="Keep the LoRA of every N-th epoch, to compare them in the grid. 0: only the last one, "
                    "which is always kept.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="Same seed, same machine, same LoRA. Seeds the LoRA's start, the order of pictures and the noise.",
                ),
                io.Combo.Input(
                    "precision", options=list(get_args(settings.Precision)), default="auto",
                    tooltip="Number format of the computation. auto: as ComfyUI loaded the model. The LoRA itself is fp32, "
                    "and so computes a CPU that has no instructions for less.",
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
                *_network(), *_text(), *_optimizer(), *_noise(), *_loss(), *_length(), *_memory(),
                _choice(
                    "prompt_syntax", settings.Syntax,
                    "plain: captions and prompts are text as it stands, brackets and all. ComfyUI: (weights:1.2) and "
                    "embedding:names in them count.",
                ),
                *_added_later(),
            ], ADVANCED, GROUPS),
            outputs=[CONFIG.Output(
                display_name="config", is_output_list=True, tooltip="Connect to Train LoRA, which trains each recipe of a sweep."
            )],
        )  # fmt: skip

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(build_all(**widgets))

    @classmethod
    def validate_inputs(cls, name: str | None = None, sweep: str | None = None) -> bool | str:
        """A bad name and a sweep that cannot be read are shown before anything runs.

        The host checks numbers against their limits itself, and contradictions are said when the node runs, before training.
        """
        from ..training import host

        try:
            if name is not None:
                settings.check_run_name(name)
            if sweep is not None and sweep.strip():
                for values in combinations(sweep, varying()):
                    settings.check_swept_name(name or "", varied(values))
        except AtelierError as error:
            return host.refusal(str(error))
        return True


def _share(name: str, tooltip: str) -> Any:
    return io.Float.Input(name, default=0.0, min=0.0, max=0.99, step=0.01, optional=True, tooltip=tooltip)


def _whole(name: str, default: int, low: int, high: int, tooltip: str) -> Any:
    return io.Int.Input(name, default=default, min=low, max=high, optional=True, tooltip=tooltip)


def _number(name: str, default: float, low: float, high: float, step: float, tooltip: str) -> Any:
    return io.Float.Input(name, default=default, min=low, max=high, step=step, round=False, optional=True, tooltip=tooltip)


def _choice(name: str, kind: Any, tooltip: str) -> Any:
    options = list(get_args(kind))
    return io.Combo.Input(name, options=options, default=options[0], optional=True, tooltip=tooltip)


def _lines(name: str, tooltip: str) -> Any:
    return io.String.Input(name, default="", multiline=True, optional=True, tooltip=tooltip)


def _switch(name: str, default: bool, tooltip: str) -> Any:
    return io.Boolean.Input(name, default=default, optional=True, tooltip=tooltip)


def _network() -> list[Any]:
    from ..training import host

    return [
        _choice("algorithm", settings.Algorithm, "LoRA for nearly everything. LoHa and LoKr need the package lycoris-lora."),
        _switch("weight_decompose", False, "DoRA: length and direction of the weights are trained apart. Slower, often closer."),
        _switch("rank_stabilised", False, "rs-LoRA: scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones."),
        _whole("conv_rank", 0, 0, 1024, "Rank of convolutions larger than a pixel (targets: all); 0: the rank above."),
        _number("conv_alpha", 0.0, 0.0, 1024.0, 0.5, "Alpha of these convolutions; 0: the same ratio to the rank."),
        _whole("lokr_factor", -1, -1, 4096, "LoKr: one side of the product; -1: as even as possible."),
        _share("dropout", "Share of the values inside the LoRA that a step does without."),
        _share("rank_dropout", "Share of the ranks that a step does without."),
        _share("module_dropout", "Share of the layers whose LoRA sits a step out."),
        _number("scale_weight_norms", 0.0, 0.0, 1000.0, 0.5, "Largest norm of a layer's change; 0: no limit."),
        _number("lora_plus_ratio", 1.0, 1.0, 1024.0, 1.0, "LoRA+: up-matrices learn so many times faster; 16 is usual, 1: off."),
        _lines("include", "Patterns of layer names, one a line (double_blocks.0-9.*), in place of targets."),
        _lines("exclude", "Patterns of layer names, one a line, that are not trained."),
        _lines("rules", "Rank, alpha and rate by pattern, one a line: double_blocks.0-9.* rank=8 alpha=4 rate=0.5"),
        io.Combo.Input(
            "start_from", options=[NOTHING, *host.lora_files()], default=NOTHING, optional=True,
            tooltip="A LoRA to go on from; its layers and ranks are taken over.",
        ),
    ]  # fmt: skip


def _text() -> list[Any]:
    return [
        _choice(
            "text_encoder", settings.TextEncoders, "Train the text encoder too. clip: CLIP-L and CLIP-G; all: T5 and others."
        ),
        _number("text_encoder_rate", 0.0, 0.0, 10.0, 1e-6, "Its own peak rate, half to a tenth of the model's; 0: the same."),
    ]


def _optimizer() -> list[Any]:
    return [
        _lines("optimizer_args", "More settings of the optimizer: betas=0.9,0.999 decouple=True"),
        _share("warmup_share", "Warmup as a share of the run, in place of warmup_steps."),
        _number("min_rate", 0.0, 0.0, 10.0, 1e-6, "Where the schedule ends instead of at 0."),
        _share("min_share", "The same as a share of the learning rate."),
        _whole("cycles", 1, 1, 10_000, "How often the rate falls, for cosine with restarts and annealing."),
        _whole("cycle_steps", 0, 0, 10_000_000, "Annealing: steps of a cycle; the rate stays after the last. 0: over the run."),
        _number("power", 1.0, 0.01, 10.0, 0.1, "Exponent of the polynomial schedule."),
        _whole("accumulate", 1, 1, 10_000, "Batches averaged into one step: a larger batch in small memory."),
        _number("ema_decay", 0.0, 0.0, 0.9999, 0.0001, "Save and sample an average of the weights; 0.999 is usual, 0: off."),
        _switch("gradient_checkpointing", False, "A third slower, and far less memory: inner values are computed twice."),
        _switch("compile", False, "Compile the model's blocks: slow at first, faster then. Needs a C++ compiler or Triton."),
        _switch("offload_activations", False, "Keep inner values in main memory: slower, and far less memory on the GPU."),
    ]


def _noise() -> list[Any]:
    return [
        _number("logit_mean", 0.0, -10.0, 10.0, 0.1, "logit-normal levels: below 0 practises details, above 0 composition."),
        _number("logit_std", 1.0, 0.01, 10.0, 0.1, "logit-normal levels: how widely they spread."),
        _number("sigmoid_scale", 1.0, 0.01, 10.0, 0.1, "sigmoid and shifted levels: larger spreads them to both ends."),
        _number("shift", 0.0, 0.0, 100.0, 0.1, "shifted levels: factor towards noise; 0: what suits the model."),
        _number("lowest_level", 0.0, 0.0, 1.0, 0.01, "Start of the range of levels; 0 is no noise."),
        _number("highest_level", 1.0, 0.0, 1.0, 0.01, "End of the range of levels; 1 is nothing but noise."),
        _number("noise_offset", 0.0, 0.0, 1.0, 0.01, "Lets brightness be learnt; 0.05 to 0.1 is usual, 0: off."),
        _switch("offset_each_channel", True, "Noise offset: every channel gets a number of its own."),
        _switch("offset_random", False, "Noise offset: every picture gets a strength of its own up to noise_offset."),
        _whole("pyramid_iterations", 0, 0, 16, "Pyramid noise: layers of coarser noise; 6 is usual, 0: off."),
        _number("pyramid_discount", 0.3, 0.01, 0.99, 0.05, "Pyramid noise: how much each coarser layer counts."),
        _number(
            "input_perturbation", 0.0, 0.0, 1.0, 0.05, "Noise that the model sees but is not asked for; 0.1 is usual, 0: off."
        ),
    ]


def _loss() -> list[Any]:
    return [
        _choice("loss", settings.LossKind, "huber and smooth-l1 forgive a picture that does not fit the others."),
        _choice("huber_schedule", settings.HuberSchedule, "Forgiving where there is much noise, or everywhere alike."),
        _number("huber_threshold", 0.1, 0.0001, 1.0, 0.01, "From about this error on it is forgiven."),
        _choice("weighting", settings.Weighting, "min-SNR, debiased: for SD1.5 and SDXL. sigma-sqrt, cosmap: for flow models."),
        _number("snr_gamma", 5.0, 0.01, 1000.0, 0.5, "min-SNR: 5 is the paper's."),
        _number("preservation", 0.0, 0.0, 100.0, 0.1, "How strongly the model is held to what it drew; 1 is usual, 0: off."),
        io.String.Input(
            "preservation_prompt", default="", optional=True,
            tooltip="What it is held at, such as 'a woman'. Empty: the captions of the regularisation pictures. Two quotation "
            "marks: no prompt at all.",
        ),
    ]  # fmt: skip


def _length() -> list[Any]:
    return [
        _whole("save_every_steps", 0, 0, 10_000_000, "Keep the LoRA of every N-th step as well; 0: no."),
        _whole("keep_last", 0, 0, 100_000, "Keep only so many of the files saved on the way; 0: all."),
        _whole("sample_every", 0, 0, 100_000, "Draw the samples every N epochs. This and the next at 0: at every save."),
        _whole("sample_every_steps", 0, 0, 10_000_000, "Draw the samples every N steps."),
        _choice(
            "when_enough", settings.WhenEnough, "Measures a fixed loss after every epoch; says when it settles, or ends then."
        ),
        _choice("on_divergence", settings.OnDivergence, "What happens when the loss rises to several times its best."),
    ]


def _memory() -> list[Any]:
    return [
        _number(
            "offload_blocks", 0.0, 0.0, 1.0, 0.1,
            "Share of the model's blocks that wait in main memory until they are used: slower, for models larger than the GPU.",
        ),
    ]  # fmt: skip


def _added_later() -> list[Any]:
    """Behind all others, since workflows store values by their place."""
    return [
        _choice(
            "base_weights", settings.BaseWeights,
            "How the model's large weights are held while it trains. fp8, int8: rounded to half of their memory; another LoRA.",
        ),
        _choice(
            "speed", settings.Speed,
            "auto: an NVIDIA GPU repeats recorded steps and need not wait for Python. eager: every operation anew.",
        ),
        _number(
            "mask_preservation", 0.0, 0.0, 100.0, 0.1,
            "How strongly the model is held, outside of masks, to what it drew there; 1 is usual, 0: off.",
        ),
        _choice(
            "level_draw", settings.LevelDraw,
            "stratified: levels lie evenly over a batch and from step to step, instead of by chance. A steadier loss.",
        ),
        _number(
            "guidance", 1.0, 0.0, 100.0, 0.1,
            "What a guidance-distilled model (Flux dev, Hunyuan) is told in training; 1 is usual. Others are told none.",
        ),
        _lines(
            "sweep",
            "Several trainings one after the other, a widget and its values a line: rank: 8, 16, 32. The grid shows them "
            "side by side. Lines are combined.",
        ),
        _number(
            "text_encoder_dropout", -1.0, -1.0, 0.99, 0.01,
            "Share of the values inside the text encoder's LoRA that a step does without; -1: as dropout says.",
        ),
    ]  # fmt: skip


def varying() -> dict[str, Kind]:
    """What a sweep may vary: the node's numbers, switches and choices among settings."""
    kinds: dict[str, Kind] = {}
    for entry in ConfigureLoRA.GET_SCHEMA().inputs:
        for of, kind in ((io.Int.Input, int), (io.Float.Input, float), (io.Boolean.Input, bool)):
            if isinstance(entry, of):
                kinds[entry.id] = kind
        if isinstance(entry, io.Combo.Input) and entry.id not in ("preset", "start_from"):
            kinds[entry.id] = tuple(map(str, entry.options or ()))
    return kinds


def build_all(sweep: str = "", **widgets: Any) -> list[settings.TrainingConfig]:
    """A configuration for each training of a sweep; a single one where nothing varies."""
    found = combinations(sweep, varying()) if text_of("sweep", sweep).strip() else [{}]
    return [build(**{**widgets, **values}, varied=varied(values)) for values in found]


def build(**widgets: Any) -> settings.TrainingConfig:
    """The configuration that these widget values describe, whatever varies; what is missing takes its default.

    Raises AtelierError with a sentence when they contradict each other.
    """
    parts: dict[str, dict[str, Any]] = {part: {} for part in KINDS}
    own: dict[str, Any] = {"name": "my-lora"}
    for widget, value in widgets.items():
        if widget in ("preset", "sweep"):
            continue
        part, field = WIDGETS.get(widget, ("", widget))
        if widget == "start_from" and value == NOTHING:
            value = ""
        (parts[part] if part else own)[field] = value
    return settings.TrainingConfig(**own, **{part: KINDS[part](**values) for part, values in parts.items()})
