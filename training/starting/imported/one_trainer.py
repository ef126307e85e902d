"""OneTrainer's presets and configurations (JSON)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .collector import CACHED, LOGGED, MODEL, PATH, SELF_TUNING, SPEED, Collector, Imported, number_of, optimizer_of, truth

RECIPE, DATA = "ConfigureLoRA", "LoadDataset"
PRECISIONS = {"float_16": "fp16", "bfloat_16": "bf16", "float_32": "fp32", "tfloat_32": "fp32"}
SCHEDULES = {
    "constant": "constant", "linear": "linear", "cosine": "cosine", "cosine_with_restarts": "cosine with restarts",
    "cosine_with_hard_restarts": "cosine with restarts", "adafactor": "constant",
}  # fmt: skip
LEVELS = {"uniform": "uniform", "sigmoid": "sigmoid", "logit_normal": "logit-normal"}
EIGHT_BITS = {"FLOAT_8": "fp8", "FLOAT_W8A8": "fp8", "INT_8": "int8", "INT_W8A8": "int8", "GGUF": "int8", "NFLOAT_4": "int8"}
PARTS = ("unet", "transformer", "prior", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")


def is_one_trainer(settings: Mapping[str, Any]) -> bool:
    return "training_method" in settings and "model_type" in settings


def read(settings: Mapping[str, Any]) -> Imported:
    """A configuration, of which only LoRA training is taken over."""
    found = Collector("OneTrainer", settings)
    method = str(found.take("training_method") or "LORA")
    if method != "LORA":
        found.lose("training_method", method, "is not done here; what else stands in the file was taken for a LoRA")
    found.number(RECIPE, "rank", "lora_rank", whole=True)
    found.number(RECIPE, "alpha", "lora_alpha")
    found.nodes.setdefault(RECIPE, {}).setdefault("rank", 16)  # OneTrainer's own where a preset says nothing
    found.nodes[RECIPE].setdefault("alpha", 1.0)
    found.choice(RECIPE, "algorithm", {"lora": "LoRA", "loha": "LoHa"}, "peft_type")
    found.switch(RECIPE, "weight_decompose", "lora_decompose")
    found.number(RECIPE, "dropout", "dropout_probability")
    _rates(found)
    found.number(RECIPE, "epochs", "epochs", whole=True)
    _saves(found)
    _noise(found)
    _parts(found)
    side = number_of(str(found.take("resolution") or "").split(",")[0])
    if side:
        found.set(DATA, "resolution", max(64, round(side / 64) * 64))
    found.number(DATA, "batch_size", "batch_size", whole=True)
    found.switch(DATA, "buckets", "aspect_ratio_bucketing")
    if truth(found.take("masked_training")):
        found.set(DATA, "masks", "files")
    found.number(DATA, "mask_floor", "unmasked_weight")
    found.choice(RECIPE, "precision", PRECISIONS, "train_dtype")
    found.choice(RECIPE, "save_precision", PRECISIONS, "output_dtype")
    found.number(RECIPE, "seed", "seed", whole=True)
    found.switch(RECIPE, "compile", "compile")
    way = found.take("gradient_checkpointing")
    if way is not None:
        found.set(RECIPE, "gradient_checkpointing", str(way) not in ("OFF", "False"))
        found.set(RECIPE, "offload_activations", str(way) == "CPU_OFFLOADED")
    found.drop(
        "layers are chosen by targets, include and exclude here", "layer_filter", "layer_filter_preset", "layer_filter_regex",
    )  # fmt: skip
    found.drop(
        PATH, "base_model_name", "output_model_destination", "workspace_dir", "cache_dir", "concept_file_name", "concepts",
        "sample_definition_file_name", "samples", "lora_model_name", "debug_dir", "huggingface_cache_dir",
    )  # fmt: skip
    found.drop(CACHED, "latent_caching", "clear_cache_before_training")
    found.drop(
        MODEL,
        "model_type",
        "vae",
        "force_v_prediction",
        "force_epsilon_prediction",
        "rescale_noise_scheduler_to_zero_terminal_snr",
    )
    found.drop(
        SPEED, "weight_dtype", "quantization", "dataloader_threads", "train_device", "temp_device", "attention_mechanism",
        "async_offloading", "enable_async_offloading", "enable_activation_offloading", "fallback_train_dtype", "multi_gpu",
        "enable_autocast_cache", "layer_offload_fraction",
    )  # fmt: skip
    found.drop(
        LOGGED, "__version", "output_model_format", "tensorboard", "tensorboard_port", "tensorboard_expose", "backup_after",
        "backup_after_unit", "save_filename_prefix", "rolling_backup", "rolling_backup_count", "validation",
        "include_train_config",
        "samples_to_tensorboard", "sample_image_format", "cloud", "optimizer_defaults", "tensorboard_always_on", "debug_mode",
    )  # fmt: skip
    return found.finish()


def _rates(found: Collector) -> None:
    given = found.take("optimizer")
    values = dict(given) if isinstance(given, dict) else {"optimizer": given}
    name = optimizer_of(found, values.pop("optimizer", None), "optimizer")
    rate = number_of(found.take("learning_rate"))
    if rate:
        found.set(RECIPE, "learning_rate", rate)
        if name in SELF_TUNING and rate < 0.01:
            found.set(RECIPE, "learning_rate", 1.0)
            found.lose("learning_rate", rate, f"became 1, since {name} finds the rate itself")
    decay = number_of(values.pop("weight_decay", None))
    if decay is not None:
        found.set(RECIPE, "weight_decay", decay)
    betas = [number_of(values.pop(key, None)) for key in ("beta1", "beta2")]
    kept = {
        key: values.pop(key)
        for key in ("d_coef", "d0", "decouple", "use_bias_correction", "safeguard_warmup", "relative_step", "scale_parameter",
                    "warmup_init", "momentum", "eps")
        if values.get(key) is not None and (name in ("Prodigy", "DAdaptAdam", "Adafactor") or key == "eps")
    }  # fmt: skip
    texts = [f"{key}={value}" for key, value in kept.items() if key != "eps" or number_of(value)]
    if all(beta is not None for beta in betas):
        texts.insert(0, f"betas={betas[0]:g},{betas[1]:g}")
    if texts:
        found.set(RECIPE, "optimizer_args", " ".join(texts))
    for key, value in values.items():
        if value not in (None, False, "", {}):
            found.lose(f"optimizer.{key}", value, "has no counterpart here")
    found.choice(RECIPE, "schedule", SCHEDULES, "learning_rate_scheduler")
    warmup = number_of(found.take("learning_rate_warmup_steps"))
    if warmup is not None:
        found.set(
            RECIPE, "warmup_share" if 0 < warmup <= 1 else "warmup_steps", min(0.99, warmup) if 0 < warmup <= 1 else round(warmup)
        )
    found.number(RECIPE, "cycles", "learning_rate_cycles", whole=True)
    found.number(RECIPE, "min_share", "learning_rate_min_factor")
    found.number(RECIPE, "accumulate", "gradient_accumulation_steps", whole=True)
    found.number(RECIPE, "max_grad_norm", "clip_grad_norm")
    if str(found.take("ema") or "OFF") != "OFF":
        found.number(RECIPE, "ema_decay", "ema_decay")
    found.drop("averages are off in this file", "ema_decay", "ema_update_step_interval")
    scaler = found.take("learning_rate_scaler")
    if scaler not in (None, "NONE"):
        found.lose("learning_rate_scaler", scaler, "rates are not scaled by the batch here; multiply learning_rate yourself")


def _saves(found: Collector) -> None:
    for amount, widgets in (
        ("save_every", ("save_every", "save_every_steps")),
        ("sample_after", ("sample_every", "sample_every_steps")),
    ):
        value, unit = number_of(found.take(amount)), str(found.take(f"{amount}_unit") or "NEVER")
        if value and unit in ("EPOCH", "STEP"):
            found.set(RECIPE, widgets[unit == "STEP"], round(value))
        elif value and unit != "NEVER":
            found.lose(amount, f"{value:g} {unit.lower()}", "is counted in epochs or steps here")


def _noise(found: Collector) -> None:
    found.number(RECIPE, "noise_offset", "offset_noise_weight")
    found.number(RECIPE, "input_perturbation", "perturbation_noise_weight")
    found.number(RECIPE, "lowest_level", "min_noising_strength")
    found.number(RECIPE, "highest_level", "max_noising_strength")
    levels = found.choice(RECIPE, "noise_levels", LEVELS, "timestep_distribution")
    weight, bias = number_of(found.take("noising_weight")), number_of(found.take("noising_bias"))
    if levels == "logit-normal":
        found.set(RECIPE, "logit_mean", bias or 0.0)
        found.set(RECIPE, "logit_std", max(0.01, 1 + (weight or 0.0)))
    elif weight or bias:
        found.lose("noising_weight, noising_bias", f"{weight}, {bias}", "shape a distribution that is not offered here")
    if truth(found.take("dynamic_timestep_shifting")):
        found.set(RECIPE, "noise_levels", "auto")
        if levels not in (None, "logit-normal"):
            found.lose("dynamic_timestep_shifting", True, "became noise_levels auto, which shifts by the picture's size")
    shift = number_of(found.take("timestep_shift"))
    if shift and shift != 1:
        found.set(RECIPE, "noise_levels", "shifted")
        found.set(RECIPE, "shift", shift)
    found.choice(
        RECIPE, "weighting", {"constant": "none", "min_snr_gamma": "min-SNR", "debiased_estimation": "debiased",
        "sigma": "sigma-sqrt"},
        "loss_weight_fn",
    )  # fmt: skip
    gamma = number_of(found.take("loss_weight_strength"))
    if gamma and found.nodes[RECIPE].get("weighting") == "min-SNR":
        found.set(RECIPE, "snr_gamma", gamma)
    if number_of(found.take("huber_strength")):
        found.set(RECIPE, "loss", "huber")
        found.number(RECIPE, "huber_threshold", "huber_delta")
    found.rest.pop("mse_strength", None)
    found.rest.pop("huber_delta", None)


def _parts(found: Collector) -> None:
    """How each of the model's parts is held and trained."""
    trained: list[str] = []
    for name in PARTS:
        part = found.rest.pop(name, None)
        if not isinstance(part, dict):
            continue
        text = name.startswith("text_encoder")
        kind = str(part.get("weight_dtype", ""))
        if not text and kind in EIGHT_BITS:
            found.set(RECIPE, "base_weights", EIGHT_BITS[kind])
            if kind in ("NFLOAT_4", "GGUF"):
                found.lose(f"{name}.weight_dtype", kind, "became int8: fewer than eight bits are not made here")
        share = number_of(part.get("offload_fraction"))
        if not text and share:
            found.set(RECIPE, "offload_blocks", min(1.0, share))
            found.set(RECIPE, "gradient_checkpointing", True)
        rate = number_of(part.get("learning_rate"))
        if rate and not text:
            found.set(RECIPE, "learning_rate", rate)
        if text and truth(part.get("train")):
            trained.append(name)
            found.set(RECIPE, "text_encoder_rate", rate)
        if not text and truth(part.get("train")) is False:
            found.set(RECIPE, "targets", "none")
        if part.get("stop_training_after_unit") not in (None, "NEVER"):
            found.lose(f"{name}.stop_training_after", part.get("stop_training_after"), "parts are trained to the end here")
    found.set(RECIPE, "text_encoder", "none" if not trained else "clip")
