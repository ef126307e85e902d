"""OneTrainer's presets and configurations (JSON)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .collector import (
    CACHED,
    LOGGED,
    MODEL,
    PATH,
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

RECIPE, DATA = "ConfigureLoRA", "LoadDataset"
PRECISIONS = {"float_16": "fp16", "bfloat_16": "bf16", "float_32": "fp32", "tfloat_32": "fp32"}
SCHEDULES = {
    "constant": "constant", "linear": "linear", "cosine": "cosine", "cosine_with_restarts": "cosine with restarts",
    "cosine_with_hard_restarts": "cosine with restarts", "adafactor": "constant",
}  # fmt: skip
LEVELS = {"uniform": "uniform", "logit_normal": "logit-normal"}
EIGHT_BITS = {"FLOAT_8": "fp8", "FLOAT_W8A8": "fp8", "INT_8": "int8", "INT_W8A8": "int8", "GGUF": "int8", "NFLOAT_4": "int8"}
TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
PARTS = ("unet", "transformer", "prior", *TEXT_PARTS)
TEXTS = {
    "STABLE_DIFFUSION_XL": "cc", "STABLE_DIFFUSION_3": "cco", "STABLE_DIFFUSION": "c", "WUERSTCHEN": "c", "STABLE_CASCADE": "c",
    "FLUX_DEV": "co", "FLUX_FILL": "co", "HUNYUAN_VIDEO": "oc", "HI_DREAM": "ccoo", "PIXART": "o", "SANA": "o", "CHROMA": "o",
    "QWEN": "o",
}  # fmt: skip
"""The text encoders that a LoRA of a model may train: CLIP or others, by the beginning of the model's name."""
TAKEN = {
    "include", "train", "stop_training_after", "stop_training_after_unit", "learning_rate", "weight_dtype", "offload_fraction",
    "gradient_checkpointing", "activation_offloading", "train_embedding",
}  # fmt: skip
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "Prodigy": ("d_coef", "d0", "decouple", "use_bias_correction", "safeguard_warmup", "eps"),
    "DAdaptAdam": ("d0", "decouple", "use_bias_correction", "eps"),
    "Adafactor": ("relative_step", "scale_parameter", "warmup_init", "clip_threshold", "decay_rate", "eps", "eps2"),
    "CAME": ("clip_threshold", "eps", "eps2"), "SGD": ("momentum",), "Lion": (), "Lion8bit": (),
    "ProdigyPlusScheduleFree": (
        "beta3", "eps", "weight_decay_by_lr", "d0", "d_coef", "d_limiter", "prodigy_steps", "schedulefree_c", "split_groups",
        "split_groups_mean", "factored", "factored_fp32", "use_stableadamw", "use_cautious", "use_grams", "use_adopt",
        "use_focus", "use_schedulefree", "use_orthograd", "use_speed", "use_bias_correction",
    ),
    "Muon": ("momentum", "nesterov", "ns_steps", "eps"),
}  # fmt: skip
"""What is taken of an optimizer's settings; of those that are not here, eps."""


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
    _parts(found, str(found.rest.get("model_type")))
    found.sizes("resolution", found.take("resolution"))
    found.number(DATA, "batch_size", "batch_size", whole=True)
    found.switch(DATA, "buckets", "aspect_ratio_bucketing")
    if truth(found.take("masked_training")):
        found.set(DATA, "masks", "files")
        found.number(RECIPE, "mask_preservation", "masked_prior_preservation_weight")
    found.drop("masks are off in this file", "masked_prior_preservation_weight")
    found.number(DATA, "mask_floor", "unmasked_weight")
    found.choice(RECIPE, "precision", PRECISIONS, "train_dtype")
    found.choice(RECIPE, "save_precision", PRECISIONS, "output_dtype")
    found.number(RECIPE, "seed", "seed", whole=True)
    found.switch(RECIPE, "compile", "compile")
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
        "async_offloading", "enable_async_offloading", "fallback_train_dtype", "multi_gpu", "enable_autocast_cache",
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
    if name not in ("Adafactor", "SGD"):
        betas = [number_of(values.get(key)) for key in ("beta1", "beta2", "beta3")[: 3 if name == "CAME" else 2]]
        if None not in betas[:2]:
            values["betas"] = ",".join(f"{beta:g}" for beta in betas if beta is not None)
            for key in ("beta1", "beta2", "beta3")[: len(betas)]:
                values.pop(key, None)
    texts = {}
    for key in ("betas", *ARGUMENTS.get(str(name), ("eps",))):
        value = values.get(key)
        if key == "betas" or isinstance(value, bool) or number_of(value) is not None:
            texts[key] = str(values.pop(key, ""))
    texts = fitted(name, {key: text for key, text in texts.items() if text})
    if texts:
        found.set(RECIPE, "optimizer_args", " ".join(f"{key}={text}" for key, text in texts.items()))
    for key, value in values.items():
        if value not in (None, False, "", {}):
            found.lose(f"optimizer.{key}", value, "has no counterpart here")
    found.choice(RECIPE, "schedule", SCHEDULES, "learning_rate_scheduler")
    settle_schedule(found, name)
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
    if str(found.rest.get("timestep_distribution")).upper() == "SIGMOID":
        found.drop("is a curve over the levels there, and the sigmoid of a normal number here", "timestep_distribution")
    levels = found.choice(RECIPE, "noise_levels", LEVELS, "timestep_distribution")
    weight, bias = number_of(found.take("noising_weight")) or 0.0, number_of(found.take("noising_bias")) or 0.0
    shift, dynamic = number_of(found.take("timestep_shift")), truth(found.take("dynamic_timestep_shifting"))
    shifts = shift is not None and shift != 1 and not dynamic
    if levels == "logit-normal":
        # A shift by k moves the mean of the logit by the logarithm of k.
        moved = shifts and shift is not None and 0 < shift <= 100
        found.set(RECIPE, "logit_mean", round(bias + (math.log(shift) if moved and shift else 0.0), 6))
        found.set(RECIPE, "logit_std", max(0.01, 1 + weight))
        shifts = shifts and not moved
    elif weight or bias:
        found.lose("noising_weight, noising_bias", f"{weight}, {bias}", "shape a distribution that is not offered here")
    if dynamic:
        found.set(RECIPE, "noise_levels", "auto")
        if levels != "logit-normal" or weight or bias:
            found.lose("dynamic_timestep_shifting", True, "became noise_levels auto, which shifts by the picture's size")
    if shifts:
        found.lose("timestep_shift", shift, "has no counterpart with this distribution")
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


def _parts(found: Collector, model: str) -> None:
    """How each of the model's parts is held and trained; a file holds more of them than the model has."""
    parts = {name: found.rest.pop(name, None) for name in PARTS}
    present = {name: part for name, part in parts.items() if isinstance(part, dict)}
    unet = model.startswith(("STABLE_DIFFUSION_1", "STABLE_DIFFUSION_2", "STABLE_DIFFUSION_X"))
    own = "unet" if unet else "prior" if model.startswith(("WUERSTCHEN", "STABLE_CASCADE")) else "transformer"
    name = next((name for name in (own, "transformer", "prior", "unet") if name in present), own)
    _network_part(found, name, present.get(name, {}))
    kinds = next((kinds for start, kinds in TEXTS.items() if model.startswith(start)), "")
    encoders = {name: (kinds + "????")[i] for i, name in enumerate(TEXT_PARTS) if i < len(kinds) or name in present}
    trained = []
    for name, kind in encoders.items():
        part = present.get(name, {})
        trains = truth(part.get("train"))
        if trains or (trains is None and kind != "?"):  # they are trained unless a file says otherwise
            trained.append(name)
            found.set(RECIPE, "text_encoder_rate", number_of(part.get("learning_rate")) or 0.0)
            after, unit = part.get("stop_training_after", 30), part.get("stop_training_after_unit", "EPOCH")
            epochs = number_of(found.nodes[RECIPE].get("epochs")) or 0
            if unit != "NEVER" and not (unit == "EPOCH" and epochs <= (number_of(after) or 0)):
                found.lose(f"{name}.stop_training_after", f"{after} {unit}", "parts are trained to the end here")
        if kind != "?":
            _rest_of(found, name, part)
    choice = "none" if not trained else "clip" if all(encoders[name] == "c" for name in trained) else "all"
    found.set(RECIPE, "text_encoder", choice)
    for name, kind in encoders.items():
        if name not in trained and kind != "?" and (choice == "all" or (choice == "clip" and kind == "c")):
            found.lose(f"{name}.train", False, f"is trained with the others, since text_encoder became {choice}")


def _network_part(found: Collector, name: str, part: Mapping[str, Any]) -> None:
    """The network that is trained."""
    kind = str(part.get("weight_dtype", ""))
    if kind in EIGHT_BITS:
        found.set(RECIPE, "base_weights", EIGHT_BITS[kind])
        if kind in ("NFLOAT_4", "GGUF"):
            found.lose(f"{name}.weight_dtype", kind, "became int8: fewer than eight bits are not made here")
    # Older files hold these four for all parts, of which the last three need the first to be CPU_OFFLOADED.
    way = found.take("gradient_checkpointing")
    moves, share = found.take("enable_activation_offloading"), number_of(found.take("layer_offload_fraction")) or 0.0
    on, offloads = truth(part.get("gradient_checkpointing")) is not False, truth(part.get("activation_offloading")) is True
    if way is not None:
        on = str(way).upper() not in ("OFF", "FALSE")
        offloads = str(way) == "CPU_OFFLOADED" and truth(moves) is not False
        share = share if str(way) == "CPU_OFFLOADED" else 0.0
    share = number_of(part.get("offload_fraction")) or share
    if share > 0:
        found.set(RECIPE, "offload_blocks", min(1.0, share))
    found.set(RECIPE, "gradient_checkpointing", on or share > 0)
    found.set(RECIPE, "offload_activations", offloads)
    rate = number_of(part.get("learning_rate"))
    if rate:
        found.set(RECIPE, "learning_rate", rate)
    if truth(part.get("train")) is False:
        found.set(RECIPE, "targets", "none")
    if part.get("stop_training_after_unit") not in (None, "NEVER"):
        found.lose(f"{name}.stop_training_after", part.get("stop_training_after"), "parts are trained to the end here")
    _rest_of(found, name, part)


def _rest_of(found: Collector, name: str, part: Mapping[str, Any]) -> None:
    """Names what else a part says."""
    for key, value in part.items():
        usual = 1 if key == "guidance_scale" else 0
        if key not in TAKEN and value not in (None, "", False, [], {}) and number_of(value) != usual:
            found.lose(f"{name}.{key}", value, PATH if key == "model_name" else "has no counterpart here")
