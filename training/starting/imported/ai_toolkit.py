"""ai-toolkit's jobs (YAML)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...config import BLANK, CAPTION_ENDINGS
from .collector import (
    CACHED,
    LOGGED,
    MODEL,
    PATH,
    SCHEDULES,
    SELF_TUNING,
    SPEED,
    Collector,
    Imported,
    fitted,
    number_of,
    optimizer_of,
    settle_schedule,
    truth,
)

RECIPE, DATA, TRAIN = "ConfigureLoRA", "LoadDataset", "TrainLoRA"
PRECISIONS = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "float": "fp32",
}
WITH_CONVOLUTIONS = {"", "sd", "sd1", "sd15", "sd2", "sdxl", "ssd", "vega"}
"""Architectures with convolutions that ai-toolkit trains."""
WHOLE = 1024
"""A rank at which the matrices of a LoKr are whole."""
LEVELS = {"sigmoid": "sigmoid", "linear": "uniform", "shift": "auto", "flux_shift": "auto", "lumina2_shift": "auto"}


def process_of(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first process of a job; None if this is none."""
    config = settings.get("config")
    rows = config.get("process") if isinstance(config, dict) else None
    return rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else None


def read(settings: Mapping[str, Any]) -> Imported:
    """A job; its sections become names with a point, such as ``train.lr``."""
    process = process_of(settings) or {}
    found = Collector("ai-toolkit", _flat(process))
    found.set(RECIPE, "name", settings["config"].get("name"))
    kind = str(found.take("network.type") or "lora").lower()
    found.set(RECIPE, "algorithm", {"lokr": "LoKr", "loha": "LoHa"}.get(kind, "LoRA"))
    if kind not in ("lora", "lokr", "loha", "locon"):
        found.lose("network.type", kind, "is not offered here; LoRA was taken")
    found.number(RECIPE, "rank", "network.rank", "network.linear", whole=True)
    found.number(RECIPE, "alpha", "network.linear_alpha", "network.alpha")
    found.nodes[RECIPE].setdefault("rank", 4)  # ai-toolkit's own where nothing is said
    found.nodes[RECIPE].setdefault("alpha", 1.0)
    others = ("is_flux", "is_v3", "is_lumina2", "is_pixart", "is_pixart_sigma", "is_auraflow")
    convolutions = str(found.rest.get("model.arch") or "").lower() in WITH_CONVOLUTIONS
    if not convolutions or any(truth(found.rest.get(f"model.{name}")) for name in others):
        found.drop("has no effect: this model has no convolutions that are trained", "network.conv", "network.conv_alpha")
    conv = found.number(RECIPE, "conv_rank", "network.conv", whole=True)
    alpha = number_of(found.take("network.conv_alpha"))
    if conv:
        found.set(RECIPE, "conv_alpha", conv if alpha is None else alpha)
        found.set(RECIPE, "targets", "all")
    if kind == "lokr":
        found.number(RECIPE, "lokr_factor", "network.lokr_factor", whole=True)
        if truth(found.take("network.lokr_full_rank")):
            found.set(RECIPE, "rank", WHOLE)
            found.set(RECIPE, "alpha", float(WHOLE))
            found.lose("network.lokr_full_rank", True, f"became rank {WHOLE}, at which most matrices are whole here")
    found.drop("is for LoKr", "network.lokr_factor", "network.lokr_full_rank")
    found.number(RECIPE, "dropout", "network.dropout")
    found.choice(RECIPE, "save_precision", PRECISIONS, "save.dtype")
    # Steps are the optimizer's there, and batches here.
    width = max(1, round(number_of(found.take("train.gradient_accumulation")) or 1))
    found.number(RECIPE, "save_every_steps", "save.save_every", factor=width, whole=True)
    if found.nodes[RECIPE].get("save_every_steps"):
        found.set(RECIPE, "save_every", 0)
    found.number(RECIPE, "keep_last", "save.max_step_saves_to_keep", whole=True)
    _train(found, width)
    _data(found, process.get("datasets"))
    _samples(found, width)
    if truth(found.take("model.quantize")):
        kind = str(found.take("model.qtype") or "qfloat8")
        if "int" in kind and "8" not in kind:
            found.lose("model.qtype", kind, "became int8: fewer than eight bits are not made here")
        found.set(RECIPE, "base_weights", "fp8" if "float8" in kind else "int8")
    if truth(found.take("model.layer_offloading")):
        share = number_of(found.take("model.layer_offloading_transformer_percent"))
        found.set(RECIPE, "offload_blocks", 1.0 if share is None else min(1.0, max(0.0, share)))
        found.set(RECIPE, "gradient_checkpointing", True)
    found.switch(RECIPE, "compile", "model.compile")
    found.drop(PATH, "model.name_or_path", "training_folder", "model.extras_name_or_path", "sqlite_db_path")
    found.drop(
        "is a node here: Load LoRA in front of Train LoRA's model, and the model without it at preview_model",
        "model.assistant_lora_path",
    )
    found.drop(
        MODEL,
        "model.arch",
        "model.is_flux",
        "model.is_v3",
        "model.is_lumina2",
        "model.is_xl",
        "model.is_v_pred",
        "model.is_pixart",
    )
    found.drop(
        SPEED, "device", "model.low_vram", "model.quantize_te", "model.qtype_te", "model.qtype", "train.unload_text_encoder",
        "train.attention_backend", "performance_log_every", "model.layer_offloading_text_encoder_percent", "compile_options",
    )  # fmt: skip
    found.drop(
        LOGGED, "type", "save.push_to_hub", "save.hf_repo_id", "save.hf_private", "save.save_format", "logging.log_every",
        "logging.use_ui_logger", "logging.use_wandb",
    )  # fmt: skip
    return found.finish()


SLIDER = {
    "target_class": "target", "positive_prompt": "positive", "negative_prompt": "negative", "guidance_strength": "guidance",
    "anchor_class": "preserve",
}  # fmt: skip
"""Widgets of Slider Dataset by the settings of a concept slider."""


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key == "datasets" and not before:
            continue
        name = f"{before}{key}"
        if isinstance(value, dict):
            out |= _flat(value, f"{name}.")
        else:
            out[name] = value
    return out


def _train(found: Collector, width: int) -> None:
    """``width``: batches that ai-toolkit counts as one step."""
    found.number(RECIPE, "max_steps", "train.steps", factor=width, whole=True)
    found.number(DATA, "batch_size", "train.batch_size", whole=True)
    found.set(RECIPE, "accumulate", width * max(1, round(number_of(found.take("train.gradient_accumulation_steps")) or 1)))
    name = optimizer_of(found, found.take("train.optimizer"), "train.optimizer")
    rate = number_of(found.take("train.unet_lr", "train.lr"))
    if rate:
        found.set(RECIPE, "learning_rate", rate)
        if name in SELF_TUNING and rate < 0.01:
            found.set(RECIPE, "learning_rate", 1.0)
            found.lose("train.lr", rate, f"became 1, since {name} finds the rate itself")
    found.choice(RECIPE, "schedule", SCHEDULES, "train.lr_scheduler")
    found.nodes[RECIPE].setdefault("schedule", "constant")  # what ai-toolkit does if nothing is said
    found.number(RECIPE, "warmup_steps", "train.lr_scheduler_params.num_warmup_steps", whole=True)
    found.number(RECIPE, "weight_decay", "train.optimizer_params.weight_decay")
    given = {key: found.rest.pop(key) for key in list(found.rest) if key.startswith("train.optimizer_params.")}
    plain = {key.rpartition(".")[2]: value for key, value in given.items()}
    texts = {key: ",".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in plain.items()}
    texts = fitted(name, texts)
    if texts:
        found.set(RECIPE, "optimizer_args", " ".join(f"{key}={value}" for key, value in texts.items()))
    settle_schedule(found, name)
    found.choice(RECIPE, "precision", PRECISIONS, "train.dtype")
    found.switch(RECIPE, "gradient_checkpointing", "train.gradient_checkpointing")
    found.number(RECIPE, "max_grad_norm", "train.max_grad_norm")
    trains_text = truth(found.take("train.train_text_encoder"))
    found.set(RECIPE, "text_encoder", "clip" if trains_text else "none")
    found.number(RECIPE, "text_encoder_rate", "train.text_encoder_lr")
    if truth(found.take("train.train_unet")) is False:
        found.set(RECIPE, "targets", "none")
    decay = number_of(found.take("train.ema_config.ema_decay"))
    if truth(found.take("train.ema_config.use_ema")) and decay:
        found.set(RECIPE, "ema_decay", decay)
    found.choice(RECIPE, "noise_levels", LEVELS, "train.timestep_type")
    found.number(RECIPE, "noise_offset", "train.noise_offset")
    gamma = number_of(found.take("train.min_snr_gamma", "train.snr_gamma"))
    if gamma:
        found.set(RECIPE, "weighting", "min-SNR")
        found.set(RECIPE, "snr_gamma", gamma)
    found.choice(RECIPE, "loss", {"mse": "mse", "pseudo_huber": "huber"}, "train.loss_type")
    # They count from the noisy end.
    for widget, setting, more in (("highest_level", "min_denoising_steps", 0), ("lowest_level", "max_denoising_steps", 1)):
        step = number_of(found.take(f"train.{setting}"))
        if step is not None:
            found.set(RECIPE, widget, min(1.0, max(0.0, round(1 - (step + more) / 1000, 6))))
    held, amount, kind = (found.take(f"train.diff_output_preservation{end}") for end in ("", "_multiplier", "_class"))
    if truth(held):
        found.set(RECIPE, "preservation", number_of(amount) or 1.0)
        found.set(RECIPE, "preservation_prompt", kind)
    blank, amount = (found.take(f"train.blank_prompt_preservation{end}") for end in ("", "_multiplier"))
    if truth(blank) and truth(held):
        found.lose("train.blank_prompt_preservation", blank, "goes with one prompt here, which diff_output_preservation has")
    elif truth(blank):
        found.set(RECIPE, "preservation", number_of(amount) or 1.0)
        found.set(RECIPE, "preservation_prompt", BLANK)
    outside, strength = (found.take(f"train.inverted_mask_prior{end}") for end in ("", "_multiplier"))
    if truth(outside):
        multiplier = number_of(strength)
        found.set(RECIPE, "mask_preservation", 0.5 if multiplier is None else multiplier)
    for name, widget in SLIDER.items():
        if (value := found.take(f"slider.{name}")) is not None:
            found.lose(f"slider.{name}", value, f"goes into {widget} of a Slider Dataset node, in front of Train LoRA")
    style = found.take("train.content_or_style")
    if style not in (None, "balanced"):
        found.lose("train.content_or_style", style, "leans to high or low noise, as noise_levels and its range do here")
    found.drop(CACHED, "train.cache_text_embeddings")
    found.drop(MODEL, "train.noise_scheduler", "train.bypass_guidance_embedding")


def _data(found: Collector, datasets: Any) -> None:
    rows = [row for row in datasets if isinstance(row, dict)] if isinstance(datasets, list) else []
    for number, row in enumerate(rows[1:], 2):
        found.lose(f"datasets, number {number}", row.get("folder_path", row), "needs a Load Dataset node of its own")
    data = Collector("ai-toolkit", rows[0] if rows else {})
    given = data.take("resolution")
    found.sizes("datasets.resolution", given)
    data.number(DATA, "caption_dropout", "caption_dropout_rate")
    data.switch(DATA, "shuffle_captions", "shuffle_tokens")
    data.number(DATA, "repeats", "num_repeats", whole=True)
    data.switch(DATA, "flip", "flip_x")
    if truth(data.take("is_reg")):
        data.set(DATA, "role", "regularisation")
    data.number(DATA, "loss_weight", "loss_multiplier")
    weight = data.take("network_weight")
    if weight is not None and number_of(weight) != 1:
        data.lose("network_weight", weight, "is the LoRA's strength on these pictures, which is 1 here")
    data.number(DATA, "keep_tokens", "keep_tokens", whole=True)
    ending = data.take("caption_ext")
    if ending:
        suffix = f".{str(ending).lstrip('.').lower()}"
        if suffix == ".json":
            data.set(DATA, "further_captions", suffix)
        elif suffix in CAPTION_ENDINGS:
            data.set(DATA, "caption_extension", suffix)
        else:
            data.lose("caption_ext", ending, "is no ending of caption files here")
    data.set(DATA, "class_caption", data.take("default_caption"))
    if data.take("mask_path"):
        data.set(DATA, "masks", "files")
    data.drop(PATH, "folder_path", "dataset_path", "clip_image_path", "control_path")
    data.drop(CACHED, "cache_latents_to_disk", "cache_latents", "cache_text_embeddings")
    data.drop("stills have one frame", "num_frames", "shrink_video_to_frames")
    for key, value in data.rest.items():
        if value not in (None, "", False, [], {}):
            data.lose(key, value, "has no counterpart here")
    for widget, value in data.nodes.get(DATA, {}).items():
        found.set(DATA, widget, value)
    found.lost += [type(one)(f"datasets.{one.setting}", one.value, one.why) for one in data.lost]


def _samples(found: Collector, width: int) -> None:
    found.number(RECIPE, "sample_every_steps", "sample.sample_every", factor=width, whole=True)
    found.number(TRAIN, "preview_steps", "sample.sample_steps", whole=True)
    found.number(TRAIN, "preview_cfg", "sample.guidance_scale")
    found.number(TRAIN, "preview_width", "sample.width", whole=True)
    found.number(TRAIN, "preview_height", "sample.height", whole=True)
    found.number(TRAIN, "preview_seed", "sample.seed", whole=True)
    if truth(found.take("train.disable_sampling")):
        found.set(TRAIN, "preview_steps", 0)
    rows = found.take("sample.prompts", "sample.samples")
    prompts = [row.get("prompt") if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else []
    lines = [" ".join(str(prompt).split()) for prompt in prompts if prompt]
    if lines:
        found.set(TRAIN, "preview_prompt", "\n".join(lines))
    found.set(TRAIN, "preview_negative", found.take("sample.neg"))
    trigger = found.take("trigger_word")
    if trigger:
        found.set("AutoCaption", "trigger", trigger)
    found.drop("samplers are ComfyUI's here", "sample.sampler")
    found.drop("one seed holds for all samples here", "sample.walk_seed")
    found.drop(
        "samples are drawn at every save here", "sample.sample_start_step", "train.skip_first_sample", "train.force_first_sample"
    )
    found.drop("stills have one frame", "sample.num_frames", "sample.fps")
