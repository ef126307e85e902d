"""kohya's sd-scripts and musubi-tuner (TOML), and the graphical interface around them (JSON)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ...config import CAPTION_ENDINGS, optimizer_arguments
from ...errors import AtelierError
from .collector import CACHED, LOGGED, MODEL, PATH, SCHEDULES, SPEED, Collector, Imported, number_of, optimizer_of, truth

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


def read(settings: Mapping[str, Any], origin: str = "kohya's trainer") -> Imported:
    """A configuration of ``train_network.py``."""
    found = Collector(origin, flat(settings))
    _network(found)
    _rates(found)
    _length(found)
    _noise(found)
    _data(found)
    found.choice(RECIPE, "precision", PRECISIONS, "mixed_precision")
    found.choice(RECIPE, "save_precision", PRECISIONS, "save_precision")
    found.switch(RECIPE, "gradient_checkpointing", "gradient_checkpointing")
    found.number(RECIPE, "seed", "seed", whole=True)
    found.set(RECIPE, "comment", found.take("training_comment"))
    found.set(RECIPE, "name", found.take("output_name"))
    if truth(found.take("fp8_base", "fp8_scaled", "fp8_base_unet")):
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
    found.number(RECIPE, "rank", "network_dim", whole=True)
    found.number(RECIPE, "alpha", "network_alpha")
    found.number(RECIPE, "dropout", "network_dropout")
    found.number(RECIPE, "scale_weight_norms", "scale_weight_norms", "max_norm_regularization")
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
    if found.nodes.get(RECIPE, {}).get("conv_rank"):
        found.set(RECIPE, "targets", "all")
    for key, value in given.items():
        found.lose(f"network_args {key}", value, "has no counterpart here")


def _rates(found: Collector) -> None:
    name = optimizer_of(found, found.take("optimizer_type", "optimizer"), "optimizer_type")
    both, unet = found.take("learning_rate"), found.take("unet_lr")
    rate = number_of(unet) or number_of(both)
    if rate:
        found.set(RECIPE, "learning_rate", rate)
    if unet is not None and both is not None and number_of(unet) != number_of(both):
        found.lose("learning_rate", both, "has no effect, since unet_lr is set")
    texts = found.take("text_encoder_lr")
    first = number_of(texts[0] if isinstance(texts, list) and texts else texts)
    if isinstance(texts, list) and len({number_of(one) for one in texts}) > 1:
        found.lose("text_encoder_lr", texts, "is one rate for all text encoders here; the first was taken")
    only_unet, only_text = truth(found.take("network_train_unet_only")), truth(found.take("network_train_text_encoder_only"))
    if only_text:
        found.set(RECIPE, "targets", "none")
    trains_text = not only_unet and (bool(first) if texts is not None else bool(only_text))
    found.set(RECIPE, "text_encoder", "clip" if trains_text else "none")
    found.set(RECIPE, "text_encoder_rate", first if trains_text and first else 0.0)
    given = arguments(found.take("optimizer_args"))
    for wrong in list(given):
        try:
            optimizer_arguments.parse(f"{wrong}={given[wrong]}")
        except AtelierError as error:
            found.lose(f"optimizer_args {wrong}", given.pop(wrong), str(error))
    if given:
        found.set(RECIPE, "optimizer_args", " ".join(f"{key}={value}" for key, value in given.items()))
    schedule = found.choice(RECIPE, "schedule", SCHEDULES, "lr_scheduler")
    if name == "AdamWScheduleFree" and schedule not in (None, "constant"):
        found.set(RECIPE, "schedule", "constant")
    warmup, percent = number_of(found.take("lr_warmup_steps")), number_of(found.take("lr_warmup"))
    if warmup is None and percent:
        found.set(RECIPE, "warmup_share", min(0.99, percent / 100))
    elif warmup is not None:
        found.set(RECIPE, "warmup_share" if 0 < warmup < 1 else "warmup_steps", warmup if 0 < warmup < 1 else round(warmup))
    found.number(RECIPE, "cycles", "lr_scheduler_num_cycles", whole=True)
    found.number(RECIPE, "power", "lr_scheduler_power")
    found.number(RECIPE, "min_share", "lr_scheduler_min_lr_ratio")
    found.number(RECIPE, "max_grad_norm", "max_grad_norm")
    found.number(RECIPE, "accumulate", "gradient_accumulation_steps", whole=True)


def _length(found: Collector) -> None:
    epochs = found.number(RECIPE, "epochs", "max_train_epochs", "epoch", whole=True)
    steps = number_of(found.take("max_train_steps"))
    if steps and not epochs:
        found.set(RECIPE, "max_steps", round(steps))
    elif epochs:
        found.set(RECIPE, "max_steps", 0)
        if steps:
            found.lose("max_train_steps", round(steps), "has no effect, since the epochs are set")
    found.number(RECIPE, "save_every", "save_every_n_epochs", whole=True)
    found.number(RECIPE, "save_every_steps", "save_every_n_steps", whole=True)
    found.number(RECIPE, "keep_last", "save_last_n_epochs", whole=True)
    found.number(RECIPE, "sample_every", "sample_every_n_epochs", whole=True)
    found.number(RECIPE, "sample_every_steps", "sample_every_n_steps", whole=True)


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
    if truth(found.take("debiased_estimation_loss", "debiased_estimation")):
        found.set(RECIPE, "weighting", "debiased")
    found.choice(RECIPE, "loss", {"l2": "mse", "huber": "huber", "smooth_l1": "smooth-l1"}, "loss_type")
    found.number(RECIPE, "huber_threshold", "huber_c")
    found.choice(RECIPE, "huber_schedule", {"snr": "snr", "constant": "constant"}, "huber_schedule")
    levels = found.choice(RECIPE, "noise_levels", LEVELS, "timestep_sampling")
    scheme = found.choice(
        RECIPE, "weighting", {"none": "none", "uniform": "none", "sigma_sqrt": "sigma-sqrt", "cosmap": "cosmap",
        "logit_normal": "none"},
        "weighting_scheme",
    )  # fmt: skip
    if scheme == "none" and found.nodes.get(RECIPE, {}).get("snr_gamma"):
        found.set(RECIPE, "weighting", "min-SNR")
    found.number(RECIPE, "sigmoid_scale", "sigmoid_scale")
    found.number(RECIPE, "logit_mean", "logit_mean")
    found.number(RECIPE, "logit_std", "logit_std")
    shift = number_of(found.take("discrete_flow_shift"))
    if shift and levels == "shifted":
        found.set(RECIPE, "shift", shift)
    found.number(RECIPE, "lowest_level", "min_timestep", factor=1 / 1000)
    found.number(RECIPE, "highest_level", "max_timestep", factor=1 / 1000)


def _data(found: Collector) -> None:
    resolution = found.take("resolution", "max_resolution")
    sides = [round(float(side)) for side in re.findall(r"\d+(?:\.\d+)?", str(resolution or ""))][:2]
    if sides:
        side = round((sides[0] * sides[-1]) ** 0.5 / 64) * 64
        found.set(DATA, "resolution", side)
        if len(set(sides)) > 1 or side != sides[0]:
            found.lose("resolution", resolution, f"became {side}, the side of a square of about this area")
    found.number(DATA, "batch_size", "train_batch_size", "batch_size", whole=True)
    found.number(DATA, "repeats", "num_repeats", "dataset_repeats", whole=True)
    found.switch(DATA, "buckets", "enable_bucket")
    found.number(DATA, "bucket_step", "bucket_reso_steps", whole=True)
    found.switch(DATA, "shuffle_captions", "shuffle_caption")
    found.number(DATA, "keep_tokens", "keep_tokens", whole=True)
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
    found.drop("buckets have their own limits here", "min_bucket_reso", "max_bucket_reso", "bucket_no_upscale")
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
    repeats = [one.get("n_repeats") for one in folders.values() if isinstance(one, dict)] if isinstance(folders, dict) else []
    if len(set(repeats)) == 1:
        out["num_repeats"] = repeats[0]
    if str(out.get("network_dim")) == "Dynamic":
        out.pop("network_dim")
        out.pop("network_alpha", None)
    return out


def _json(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
