"""kohya's sd-scripts and musubi-tuner (TOML), and the graphical interface around them (JSON)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ...config import CAPTION_ENDINGS, optimizer_arguments
from ...errors import AtelierError
from ...files import parse_json
from .collector import (
    CACHED,
    LOGGED,
    MODEL,
    PATH,
    SCHEDULES,
    SPEED,
    Collector,
    Imported,
    fitted,
    number_of,
    optimizer_of,
    settle_schedule,
    square_of,
    truth,
)

RECIPE, DATA = "ConfigureLoRA", "LoadDataset"
MARKS = {
    "network_dim",
    "network_module",
    "unet_lr",
    "lr_scheduler",
    "train_batch_size",
    "LoRA_type",
    "max_train_epochs",
    "network_alpha",
}
"""Settings of which a file has at least two."""
PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16", "float": "fp32", "fp32": "fp32"}
LEVELS = {
    "uniform": "uniform", "sigmoid": "sigmoid", "shift": "shifted", "flux_shift": "auto", "qwen_shift": "auto",
    "flux2_shift": "auto",
    "nextdit_shift": "auto",
}  # fmt: skip
MUSUBI = re.compile(r"lora_(wan|framepack|qwen|flux_2|zimage|hv|kandinsky|hidream|ideogram)")
"""Modules of musubi-tuner, which never trains the text encoder."""
WITH_TEXT = re.compile(r"networks\.(lora|lora_fa|dylora|oft|lora_flux|oft_flux|lora_sd3)|lycoris\.kohya")
"""Modules of sd-scripts that train CLIP if nothing is said."""
ALGORITHMS = {"lora": "LoRA", "locon": "LoRA", "loha": "LoHa", "lokr": "LoKr"}


def is_kohya(settings: Mapping[str, Any]) -> bool:
    return len(MARKS & flat(settings).keys()) >= 2


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """sd-scripts reads a TOML file's tables as if there were none."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            out |= flat(value)
        else:
            out[key] = value
    return out


def read(settings: Mapping[str, Any], origin: str = "kohya's trainer", trained: bool = False) -> Imported:
    """A configuration of ``train_network.py``, or what a LoRA's metadata tell of the run that it was ``trained`` in."""
    found = Collector(origin, flat(settings))
    texts = _default_text(found, trained)
    _network(found)
    _rates(found, texts)
    _length(found, trained)
    _noise(found)
    _data(found)
    found.choice(RECIPE, "precision", PRECISIONS, "mixed_precision")
    found.choice(RECIPE, "save_precision", PRECISIONS, "save_precision")
    found.switch(RECIPE, "gradient_checkpointing", "gradient_checkpointing")
    found.number(RECIPE, "seed", "seed", whole=True)
    found.set(RECIPE, "comment", found.take("training_comment"))
    found.set(RECIPE, "name", found.take("output_name"))
    if any([truth(found.take(name)) for name in ("fp8_base", "fp8_scaled", "fp8_base_unet")]):
        found.set(RECIPE, "base_weights", "fp8")
    blocks = found.take("blocks_to_swap")
    if blocks:
        found.lose("blocks_to_swap", blocks, "is a number of blocks, and offload_blocks a share of them; set it by hand")
    found.drop(
        PATH, "pretrained_model_name_or_path", "train_data_dir", "reg_data_dir", "output_dir", "logging_dir", "vae", "dit",
        "clip_l",
        "clip_g", "t5xxl", "ae", "text_encoder", "dataset_config", "resume", "network_weights", "sample_prompts", "qwen3",
        "text_encoder1", "text_encoder2", "logging_dir", "config_file", "byt5", "gemma2", "dataset_config", "base_weights",
    )  # fmt: skip
    found.drop(
        CACHED, "cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk",
        "vae_batch_size", "text_encoder_batch_size",
    )  # fmt: skip
    found.drop(
        SPEED, "xformers", "sdpa", "mem_eff_attn", "max_data_loader_n_workers", "persistent_data_loader_workers", "lowram",
        "highvram", "torch_compile", "dynamo_backend", "no_half_vae", "full_bf16", "full_fp16", "num_cpu_threads_per_process",
        "flash_attn", "dynamo_mode", "split_attn", "attn_mode",
    )  # fmt: skip
    found.drop(
        LOGGED, "log_with", "log_prefix", "wandb_api_key", "wandb_run_name", "save_state", "save_state_on_train_end",
        "huggingface_repo_id", "save_model_as", "log_tracker_name", "num_processes", "num_machines", "gpu_ids", "use_wandb",
    )  # fmt: skip
    found.drop(
        MODEL, "v2", "v_parameterization", "sdxl", "sdxl_checkbox", "flux1_checkbox", "zero_terminal_snr", "v_pred_like_loss",
        "model_list", "model_prediction_type", "guidance_scale", "sd3_checkbox", "model_version", "base_model_version",
    )  # fmt: skip
    return found.finish()


def arguments(value: Any) -> dict[str, str]:
    """``network_args`` and the like: a list of ``key=value``, a text of them, or already pairs."""
    if isinstance(value, dict):
        return {str(key): str(one) for key, one in value.items()}
    parts = [str(part) for part in value] if isinstance(value, list) else re.findall(r'[^\s"]+|"[^"]*"', str(value or ""))
    pairs = (part.strip().strip('"').partition("=") for part in parts)
    return {key.strip(): text.strip() for key, equals, text in pairs if equals}


def _network(found: Collector) -> None:
    given = arguments(found.take("network_args"))
    kind = str(found.take("LoRA_type") or "")
    module = str(found.take("network_module") or "networks.lora")
    word = given.pop("algo", "") or (
        "loha" if "loha" in module + kind.lower() else "lokr" if "lokr" in module + kind.lower() else "lora"
    )
    if word.lower() in ALGORITHMS:
        found.set(RECIPE, "algorithm", ALGORITHMS[word.lower()])
    else:
        found.lose("algo", word, "is not offered here; LoRA was left")
    if not re.search(r"lora|lycoris|loha|lokr", module):
        found.lose("network_module", module, "is no LoRA")
    for widget, setting, usual in (("rank", "network_dim", 4), ("alpha", "network_alpha", 1.0)):
        if found.rest.get(setting) in (None, ""):
            found.set(RECIPE, widget, usual)  # what the trainer takes if nothing is said
        found.number(RECIPE, widget, setting, whole=widget == "rank")
    found.number(RECIPE, "dropout", "network_dropout")
    found.number(RECIPE, "scale_weight_norms", "scale_weight_norms", "max_norm_regularization")
    if kind and not re.search(r"locon|loha|lokr|lycoris", kind.lower()):
        found.drop(f"has no effect in a LoRA of the type {kind}", "conv_dim", "conv_alpha")
    names = {
        "conv_dim": ("conv_rank", True), "conv_alpha": ("conv_alpha", False), "rank_dropout": ("rank_dropout", False),
        "module_dropout": ("module_dropout", False), "loraplus_lr_ratio": ("lora_plus_ratio", False),
        "loraplus_unet_lr_ratio": ("lora_plus_ratio", False), "factor": ("lokr_factor", True),
    }  # fmt: skip
    for source, (widget, whole) in names.items():
        if source in given:
            found.rest[source] = given.pop(source)
        found.number(RECIPE, widget, source, whole=whole)
    if given.get("dora_wd"):
        found.set(RECIPE, "weight_decompose", truth(given.pop("dora_wd")))
    if found.nodes[RECIPE].get("conv_rank"):
        found.set(RECIPE, "targets", "all")
        if module.startswith("networks.") and "lycoris" not in kind.lower():
            found.nodes[RECIPE].setdefault("conv_alpha", 1.0)
    for key, value in given.items():
        found.lose(f"network_args {key}", value, "has no counterpart here")


def _default_text(found: Collector, trained: bool) -> str:
    """What happens to the text encoder where nothing is said: it is trained, left alone, or nobody can tell."""
    module = str(found.rest.get("network_module") or "networks.lora")
    if any(name in found.rest for name in ("LoRA_type", "epoch")):
        return "interface"
    if "dit" in found.rest or MUSUBI.search(module):
        return "left"
    if trained or not WITH_TEXT.fullmatch(module):
        return "unknown"
    cached = truth(found.rest.get("cache_text_encoder_outputs")) and not module.endswith(("flux", "sd3"))
    return "left" if cached else "trained"


def _rates(found: Collector, default: str) -> None:
    name = optimizer_of(found, found.take("optimizer_type", "optimizer"), "optimizer_type")
    both, unet = found.take("learning_rate"), found.take("unet_lr")
    rate = number_of(unet) or number_of(both)
    if rate:
        found.set(RECIPE, "learning_rate", rate)
    texts = found.take("text_encoder_lr")
    if isinstance(texts, str):
        texts = re.split(r"[,\s]+", texts.strip("()[] "))
    first = number_of(texts[0] if isinstance(texts, list) and texts else texts)
    if isinstance(texts, list) and len({number_of(one) for one in texts}) > 1:
        found.lose("text_encoder_lr", texts, "is one rate for all text encoders here; the first was taken")
    only_unet, only_text = truth(found.take("network_train_unet_only")), truth(found.take("network_train_text_encoder_only"))
    if default == "interface":  # it decides by the rates
        zero = unet is not None and not number_of(unet)
        only_unet, only_text = not first and not zero, bool(first) and zero
        texts = texts if first else None
    trains_text = bool(first) if texts is not None else bool(only_text) or default in ("trained", "interface")
    trains_text = trains_text and not only_unet
    if only_text or (trains_text and number_of(unet) == 0 and default != "interface"):
        found.set(RECIPE, "targets", "none")
    if default == "unknown" and texts is None and not only_unet and not only_text:
        found.lose("text_encoder_lr", "", "is missing, and nothing else tells whether the text encoder was trained; it is not")
    used = number_of(unet) in (None, number_of(both)) or (trains_text and not first)
    if both is not None and not used:
        found.lose("learning_rate", both, "has no effect, since unet_lr is set")
    found.set(RECIPE, "text_encoder", "clip" if trains_text else "none")
    found.set(RECIPE, "text_encoder_rate", (first or number_of(both) or 2e-6) if trains_text else 0.0)
    given = arguments(found.take("optimizer_args"))
    for wrong in list(given):
        try:
            optimizer_arguments.parse(f"{wrong}={given[wrong]}")
        except AtelierError as error:
            found.lose(f"optimizer_args {wrong}", given.pop(wrong), str(error))
    given = fitted(name, given)
    if given:
        found.set(RECIPE, "optimizer_args", " ".join(f"{key}={value}" for key, value in given.items()))
    found.choice(RECIPE, "schedule", SCHEDULES, "lr_scheduler")
    settle_schedule(found, name)
    warmup, percent = number_of(found.take("lr_warmup_steps")), number_of(found.take("lr_warmup"))
    if not warmup and percent:
        found.set(RECIPE, "warmup_share", min(0.99, percent / 100))
    elif warmup is not None:
        found.set(RECIPE, "warmup_share" if 0 < warmup < 1 else "warmup_steps", warmup if 0 < warmup < 1 else round(warmup))
    found.number(RECIPE, "cycles", "lr_scheduler_num_cycles", whole=True)
    found.number(RECIPE, "power", "lr_scheduler_power")
    found.number(RECIPE, "min_share", "lr_scheduler_min_lr_ratio")
    found.number(RECIPE, "max_grad_norm", "max_grad_norm")
    found.number(RECIPE, "accumulate", "gradient_accumulation_steps", whole=True)


def _length(found: Collector, trained: bool) -> None:
    # Steps are the optimizer's there, and batches here.
    width = max(1, round(number_of(found.nodes[RECIPE].get("accumulate")) or 1))
    epochs, steps, passes = (number_of(found.take(name)) or 0 for name in ("max_train_epochs", "max_train_steps", "epoch"))
    if steps and (trained or not epochs):
        found.set(RECIPE, "max_steps", round(steps * width))
        if trained and epochs:
            found.set(RECIPE, "epochs", round(epochs))
        if passes:
            found.lose("epoch", passes, "has no effect, since max_train_steps is set")
    elif epochs or passes:
        found.set(RECIPE, "epochs", round(epochs or passes))
        found.set(RECIPE, "max_steps", 0)
        if steps:
            found.lose("max_train_steps", round(steps), "has no effect, since the epochs are set")
    found.number(RECIPE, "save_every", "save_every_n_epochs", whole=True)
    found.number(RECIPE, "save_every_steps", "save_every_n_steps", factor=width, whole=True)
    found.number(RECIPE, "keep_last", "save_last_n_epochs", whole=True)
    found.number(RECIPE, "sample_every", "sample_every_n_epochs", whole=True)
    found.number(RECIPE, "sample_every_steps", "sample_every_n_steps", factor=width, whole=True)


def _noise(found: Collector) -> None:
    found.number(RECIPE, "noise_offset", "noise_offset")
    found.switch(RECIPE, "offset_random", "noise_offset_random_strength")
    found.number(RECIPE, "pyramid_iterations", "multires_noise_iterations", whole=True)
    found.number(RECIPE, "pyramid_discount", "multires_noise_discount")
    if not found.nodes.get(RECIPE, {}).get("pyramid_iterations"):
        found.nodes.get(RECIPE, {}).pop("pyramid_discount", None)
    found.number(RECIPE, "input_perturbation", "ip_noise_gamma")
    gamma = number_of(found.take("min_snr_gamma"))
    if gamma:
        found.set(RECIPE, "weighting", "min-SNR")
        found.set(RECIPE, "snr_gamma", gamma)
    debiased = any([truth(found.take(name)) for name in ("debiased_estimation_loss", "debiased_estimation")])
    if debiased:
        found.set(RECIPE, "weighting", "debiased")
    found.choice(RECIPE, "loss", {"l2": "mse", "huber": "huber", "smooth_l1": "smooth-l1"}, "loss_type")
    found.number(RECIPE, "huber_threshold", "huber_c")
    found.choice(RECIPE, "huber_schedule", {"snr": "snr", "constant": "constant"}, "huber_schedule")
    _levels(found, "debiased" if debiased else "min-SNR" if gamma else "none")
    found.number(RECIPE, "lowest_level", "min_timestep", factor=1 / 1000)
    found.number(RECIPE, "highest_level", "max_timestep", factor=1 / 1000)


def _levels(found: Collector, plain: str) -> None:
    """Noise levels, and ``plain`` as the weighting unless a scheme weighs the levels itself."""
    sampling = str(found.rest.get("timestep_sampling") or "sigma").lower()
    scheme = str(found.rest.get("weighting_scheme") or "").lower()
    mean, shift = number_of(found.take("logit_mean")) or 0.0, number_of(found.take("discrete_flow_shift"))
    levels = None
    if sampling != "sigma":
        levels = found.choice(RECIPE, "noise_levels", LEVELS, "timestep_sampling")
    elif scheme == "logit_normal":
        found.take("timestep_sampling")
        levels = "logit-normal"
        found.set(RECIPE, "noise_levels", levels)
        # The drawn number counts from the noisy end there; and a shift by k moves the mean by its logarithm.
        usable = shift is not None and 0 < shift <= 100
        found.set(RECIPE, "logit_mean", round((math.log(shift) if usable and shift else 0.0) - mean, 6))
        shift = None if usable else shift
    if sampling != "sigma" and scheme == "logit_normal":
        found.lose("weighting_scheme", scheme, "has no effect unless timestep_sampling is sigma")
    if levels != "logit-normal" and mean:
        found.lose("logit_mean", mean, "has no counterpart with these noise levels")
    schemes = {"sigma_sqrt": "sigma-sqrt", "cosmap": "cosmap", "none": plain, "uniform": plain, "logit_normal": plain}
    found.choice(RECIPE, "weighting", schemes, "weighting_scheme")
    found.number(RECIPE, "sigmoid_scale", "sigmoid_scale")
    found.number(RECIPE, "logit_std", "logit_std")
    if levels == "shifted":
        found.set(RECIPE, "shift", shift)
    elif shift:
        found.lose("discrete_flow_shift", shift, "has no counterpart with these noise levels")


def _data(found: Collector) -> None:
    resolution = found.take("resolution", "max_resolution")
    written = [number_of(side) for side in re.findall(r"\d+(?:\.\d+)?", str(resolution or ""))][:2]
    sides = [side for side in written if side is not None and 0 < side < 1e5]
    if resolution and not sides:
        found.lose("resolution", resolution, "is no size")
    elif sides:
        side = square_of(sides)
        whole = len(set(sides)) == 2 and all(one % 64 == 0 and one >= 64 for one in sides)
        if whole and not truth(found.rest.get("enable_bucket")):
            found.set(DATA, "resolution", round(sides[0]))
            found.set(DATA, "fixed_height", round(sides[1]))
            found.set(DATA, "buckets", False)
        else:
            found.set(DATA, "resolution", side)
        if "fixed_height" not in found.nodes[DATA] and (len(set(sides)) > 1 or side != sides[0]):
            found.lose("resolution", resolution, f"became {side}, the side of a square of about this area")
    found.number(DATA, "batch_size", "train_batch_size", "batch_size", whole=True)
    found.number(DATA, "repeats", "num_repeats", "dataset_repeats", whole=True)
    found.switch(DATA, "buckets", "enable_bucket")
    if found.nodes.get(DATA, {}).get("buckets"):
        found.switch(DATA, "bucket_no_upscale", "bucket_no_upscale")
    found.drop("buckets are off in this file", "bucket_no_upscale")
    found.number(DATA, "bucket_step", "bucket_reso_steps", whole=True)
    found.switch(DATA, "shuffle_captions", "shuffle_caption")
    found.number(DATA, "keep_tokens", "keep_tokens", whole=True)
    if truth(found.take("enable_wildcard")):
        found.set(DATA, "wildcards", True)
        found.set(DATA, "caption_lines", "alternatives")
    found.set(DATA, "keep_separator", found.take("keep_tokens_separator") or None)
    found.number(DATA, "caption_dropout", "caption_dropout_rate")
    found.number(DATA, "tag_dropout", "caption_tag_dropout_rate")
    found.switch(DATA, "flip", "flip_aug")
    if truth(found.take("random_crop")):
        found.set(DATA, "crop", "random")
    ending = found.take("caption_extension", "caption_extention")
    if ending:
        ending = str(ending) if str(ending).startswith(".") else f".{ending}"
        found.set(DATA, "caption_extension", ending) if ending in CAPTION_ENDINGS else found.lose(
            "caption_extension", ending, "is no ending of caption files here"
        )
    for prefix in ("caption_prefix", "caption_suffix"):
        found.set(DATA, prefix, found.take(prefix))
    if truth(found.take("masked_loss")):
        found.set(DATA, "masks", "files")
    found.drop("is the loss_weight of the Load Dataset node with regularisation pictures", "prior_loss_weight")
    found.drop("buckets have their own limits here", "min_bucket_reso", "max_bucket_reso")
    found.drop("is decided by the text encoder here", "clip_skip", "max_token_length", "t5xxl_max_token_length")


def metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """``ss_*`` of a LoRA's metadata, in the names of a configuration."""
    renamed = {
        "optimizer": "optimizer_type", "num_epochs": "max_train_epochs", "batch_size_per_device": "train_batch_size",
        "debiased_estimation": "debiased_estimation_loss",
    }  # fmt: skip
    out: dict[str, Any] = {}
    for key, value in values.items():
        if not key.startswith("ss_") or value in ("None", "", None):
            continue
        name = key.removeprefix("ss_")
        out[renamed.get(name, name)] = value
    word = re.match(r"([\w.]+)(?:\((.*)\))?$", str(out.get("optimizer_type", "")), re.DOTALL)
    if word:
        out["optimizer_type"] = word[1]
        if word[2]:
            out["optimizer_args"] = re.findall(r"\w+=(?:\([^)]*\)|[^,]+)", word[2])
    given = _json(out.pop("network_args", None))
    if isinstance(given, dict):
        out["network_args"] = given
    folders = _json(out.get("dataset_dirs"))
    repeats = (
        [number_of(one.get("n_repeats")) for one in folders.values() if isinstance(one, dict)]
        if isinstance(folders, dict)
        else []
    )
    if len(set(repeats)) == 1:
        out["num_repeats"] = repeats[0]
    return out


def _json(text: Any) -> Any:
    try:
        return parse_json(text.encode()) if isinstance(text, str) else None
    except ValueError:
        return None
