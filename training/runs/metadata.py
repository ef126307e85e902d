"""LoRA metadata: kohya's ``ss_*`` keys, the ``modelspec`` standard, and the workflow that it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..config import TrainingConfig, to_dict
from ..dataset.plan import BucketRow, Plan
from ..dataset.samples import Dataset
from ..dataset.tags import folder_name, tag_frequency
from ..errors import AtelierError
from ..families import PEFT, family_named
from ..files import Serialised
from ..optim import optimizers, schedules
from ..tensors.safetensors_header import read_header
from .card import NO_CARD, Card

BASE_VERSIONS = {
    "SD15": "sd_v1", "SD20": "sd_v2", "SDXL": "sdxl_base_v1-0", "SD3": "sd3", "Flux": "flux1", "FluxSchnell": "flux1",
    "Chroma": "chroma", "Lumina2": "lumina2", "HunyuanImage21": "hunyuan-image-2.1", "Anima": "anima",
    "HunyuanVideo": "hunyuan_video", "HunyuanVideo15": "hunyuan_video_1_5", "WAN21_T2V": "wan", "QwenImage": "qwen_image",
    "Kandinsky5": "kandinsky5", "ZImage": "z_image", "Ideogram4": "ideogram4", "Krea2": "krea2",
}  # fmt: skip
"""What kohya's sd-scripts, and for their families musubi-tuner, write; other families have no such name."""
ARCHITECTURES = {
    "SD15": "stable-diffusion-v1", "SDXL": "stable-diffusion-xl-v1-base", "SDXLRefiner": "stable-diffusion-xl-v1-refiner",
    "SD3": "stable-diffusion-3", "Flux": "flux-1-dev", "FluxSchnell": "flux-1-schnell", "Chroma": "chroma", "Lumina2": "lumina-2",
    "HunyuanImage21": "hunyuan-image-2.1", "Anima": "anima-preview", "HunyuanVideo": "hunyuan-video",
    "HunyuanVideo15": "hunyuan-video-1.5", "WAN21_T2V": "wan2.1", "QwenImage": "Qwen-Image", "Kandinsky5": "Kandinsky-5",
    "ZImage": "Z-Image", "Ideogram4": "Ideogram-4", "Krea2": "Krea-2",
}  # fmt: skip
"""By the same trainers; the specification lets a family without a name take a new one, which is then the host's."""
MODULES = {"Flux": "networks.lora_flux", "FluxSchnell": "networks.lora_flux", "SD3": "networks.lora_sd3"}
"""kohya's modules of the families whose files are in kohya's names; ``networks.lora`` is that of SD and SDXL."""
LOSSES = {"mse": "l2", "huber": "huber", "smooth-l1": "smooth_l1"}
SCHEDULES = {"cosine with restarts": "cosine_with_restarts"}
PREDICTIONS = {"eps": "epsilon", "v": "v"}
"""The specification knows no other; of a flow model nothing is said."""
PAIRS = "lora_atelier.pairs"
"""How many of the pictures had control pictures."""
DYNAMIC = "Dynamic"
"""What kohya's tools write where ranks differ from layer to layer."""


def describe(
    config: TrainingConfig,
    dataset: Dataset,
    plan: Plan,
    *,
    family: str,
    prediction: str,
    epoch: int,
    step: int,
    total_steps: int,
    graph: Mapping[str, str],
    sizes: Collection[tuple[int, float]] = (),
    precision: str = "",
    card: Card = NO_CARD,
    name: str = "",
    model: str = "",
    laid: Sequence[str] = (),
    patched: int = 0,
) -> dict[str, str]:
    """Metadata of one saved epoch but for its ``content_hashes``; every value is a string, as the format demands.

    What begins with ``ss_`` means what it does in kohya's files, where steps are those of the optimizer and a switch is ``True``
    or ``False``; what is not known is left out. ``step`` and ``total_steps`` count batches, ``sizes`` are the layers' ranks and
    alphas, ``precision`` is what the run computes in, ``card`` what the person says of the LoRA, ``name`` the run's (empty:
    that of the recipe). ``model`` is the file that was trained on, ``laid`` the LoRAs that lay on it, ``patched`` on how many
    weights there was anything. ``graph`` holds ``prompt`` and ``workflow`` as the canvas sent them, so that dropping the file
    there brings them back. The hashes are those of the bytes that ``Run.save_lora`` writes.
    """
    optimizer, updates = config.optimizer, config.optimizer.updates(total_steps)
    done = updates if step == total_steps else step // optimizer.accumulate
    dim, alpha = _size(config, sizes)
    values: dict[str, Any] = {
        "ss_v2": True if family.startswith("SD2") else None,
        "ss_base_model_version": _version(family, prediction),
        "ss_network_module": _module(config, family),
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
        "ss_network_args": _network_args(config),
        "ss_network_dropout": config.network.dropout,
        "ss_scale_weight_norms": config.network.scale_weight_norms or None,
        "ss_learning_rate": optimizer.peak,
        "ss_unet_lr": optimizer.peak if config.network.trains_model else None,
        "ss_text_encoder_lr": (config.text.learning_rate or optimizer.peak) if config.text.encoders != "none" else None,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_fp8_base": True if config.base_weights == "fp8" else None,
        "ss_gradient_accumulation_steps": optimizer.accumulate,
        "ss_noise_offset": config.noise.offset or None,
        "ss_noise_offset_random_strength": config.noise.offset_random if config.noise.offset else None,
        "ss_multires_noise_iterations": config.noise.pyramid_iterations or None,
        "ss_multires_noise_discount": config.noise.pyramid_discount if config.noise.pyramid_iterations else None,
        "ss_ip_noise_gamma": config.noise.perturbation or None,
        "ss_loss_type": LOSSES[config.loss.kind],
        "ss_huber_schedule": config.loss.huber_schedule if config.loss.kind != "mse" else None,
        "ss_huber_c": config.loss.huber_threshold if config.loss.kind != "mse" else None,
        "ss_min_snr_gamma": config.loss.snr_gamma if config.loss.weighting == "min-SNR" else None,
        "ss_debiased_estimation": config.loss.weighting == "debiased",
        "ss_optimizer": optimizers.title(optimizer),
        "ss_lr_scheduler": _schedule(config),
        "ss_lr_warmup_steps": schedules.warmup_steps(optimizer, updates),
        "ss_max_grad_norm": optimizer.clip_norm,
        "ss_num_epochs": plan.epochs_for(total_steps),
        "ss_epoch": epoch,
        "ss_steps": done,
        "ss_max_train_steps": updates,
        "ss_seed": config.seed,
        "ss_mixed_precision": {"fp32": "no"}.get(precision, precision) or None,
        "ss_num_train_images": _pictures(plan, "training"),
        "ss_num_reg_images": _pictures(plan, "regularisation"),
        "ss_num_validation_images": sum(len(batch.samples) for batch in plan.validation),
        "ss_prior_loss_weight": next((s.config.loss_weight for s in dataset.subsets if s.config.role == "regularisation"), 1.0),
        "ss_num_batches_per_epoch": plan.steps_per_epoch,
        "ss_datasets": [_subset_summary(plan, number) for number in range(len(dataset.subsets))],
        "ss_dataset_dirs": _folders(plan, "training"),
        "ss_reg_dataset_dirs": _folders(plan, "regularisation"),
        "ss_bucket_info": _bucket_info(plan),
        "ss_tag_frequency": tag_frequency(dataset),
        "ss_training_comment": config.comment,
        "ss_training_finished_at": datetime.now(timezone.utc).timestamp(),
        "ss_sd_model_name": model or None,
        "ss_output_name": name or config.run_name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_architecture(family, prediction)}/lora",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": card.title or name or config.run_name,
        **card.fields(),
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": _resolution(plan),
        "modelspec.prediction_type": PREDICTIONS.get(prediction),
        "lora_atelier.family": family,
        "lora_atelier.step": step,
        "ss_guidance_scale": config.guidance if config.guidance != 1 else None,
        "lora_atelier.base_weights": config.base_weights if config.base_weights != "as loaded" else None,
        "lora_atelier.laid_on_model": list(laid) or (f"something on {patched} weights" if patched else None),
        "lora_atelier.config": to_dict(config),
        "lora_atelier.dataset": dataset.fingerprint,
        **{k: v for k, v in graph.items() if v},
    }
    return {k: _text(v) for k, v in values.items() if v is not None}


def _text(value: Any) -> str:
    """As kohya's tools write it: structures as JSON, everything else as Python prints it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _version(family: str, prediction: str) -> str | None:
    known = BASE_VERSIONS.get("SD20" if family.startswith("SD2") else family)
    return f"{known}_v" if prediction == "v" and known in ("sd_v1", "sd_v2") else known


def _architecture(family: str, prediction: str) -> str:
    if family.startswith("SD2"):
        return "stable-diffusion-v2-768-v" if prediction == "v" else "stable-diffusion-v2-512"
    return ARCHITECTURES.get(family, family.lower())


def _module(config: TrainingConfig, family: str) -> str | None:
    """None for files that no module of kohya's tools loads."""
    network = config.network
    if network.algorithm != "LoRA" or network.weight_decompose:
        return "lycoris.kohya"
    kohya = family_named(family).key_format != PEFT
    return MODULES.get(family, "networks.lora") if kohya else None


def _size(config: TrainingConfig, sizes: Collection[tuple[int, float]]) -> tuple[int | str, float | str]:
    """Rank and alpha: of the recipe, or of the layers where these have others."""
    network = config.network
    if not sizes or not (network.start_from or network.rules):
        return network.rank, network.alpha or float(network.rank)
    ranks, alphas = {rank for rank, _ in sizes}, {round(alpha, 4) for _, alpha in sizes}
    return ranks.pop() if len(ranks) == 1 else DYNAMIC, alphas.pop() if len(alphas) == 1 else DYNAMIC


def _network_args(config: TrainingConfig) -> dict[str, str] | None:
    """As they are given to the network modules of kohya's tools and LyCORIS."""
    network = config.network
    lycoris = network.algorithm != "LoRA" or network.weight_decompose
    convolutions = network.targets == "all" or bool(network.include)
    given = {
        "algo": network.algorithm.lower() if lycoris else None,
        "dora_wd": True if network.weight_decompose else None,
        "rs_lora": True if network.rank_stabilised else None,
        "factor": network.lokr_factor if network.algorithm == "LoKr" else None,
        "conv_dim": (network.conv_rank or network.rank) if convolutions else None,
        "conv_alpha": (network.conv_alpha or None) if convolutions else None,
        "rank_dropout": network.rank_dropout or None,
        "module_dropout": network.module_dropout or None,
        "loraplus_lr_ratio": network.lora_plus_ratio if network.lora_plus_ratio != 1 else None,
    }
    return {k: str(v) for k, v in given.items() if v is not None} or None


def _schedule(config: TrainingConfig) -> str:
    optimizer = config.optimizer
    if optimizer.schedule == "constant" and optimizer.warms_up:
        return "constant_with_warmup"
    if optimizer.schedule == "cosine" and (optimizer.min_rate or optimizer.min_share):
        return "cosine_with_min_lr"
    return SCHEDULES.get(optimizer.schedule, optimizer.schedule)


def _resolution(plan: Plan) -> str:
    """Of the trained pictures: the largest size asked for, or the largest size of latents that another node made."""
    trained = [s for s in plan.dataset.subsets if s.config.role == "training" and s.samples]
    asked = [s.config.fixed_size for s in trained if not s.ready]
    width, height = max(asked or [size for _, size, _ in plan.buckets], key=lambda size: size[0] * size[1])
    return f"{width}x{height}"


def content_hashes(file: Serialised) -> dict[str, str]:
    """Sha256 of the file's bytes after its header, in kohya's name and the specification's; and the older web UI's: of 64 KiB
    from offset 1 MiB, 8 digits."""
    legacy = hashlib.sha256(file.plain[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    whole = hashlib.sha256(file.data).hexdigest()
    return {"sshs_model_hash": whole, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{whole}"}


def is_whole(path: Path) -> bool:
    """Whether a LoRA file still holds the bytes of which its metadata has the hash; True where it has none."""
    try:
        stated = read_header(path).metadata.get("sshs_model_hash")
        with open(path, "rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        return stated in (None, digest.hexdigest())
    except (AtelierError, OSError):
        return False


def _subset_summary(plan: Plan, number: int) -> dict[str, Any]:
    """One of kohya's datasets with its one subset; pictures that are held out are none of it."""
    subset, count = plan.dataset.subsets[number], _trained(plan, number)
    settings, is_reg = to_dict(subset.config), subset.config.role == "regularisation"
    rows = [row for row in plan.bucket_table() if row.subset == number]
    return {
        "is_dreambooth": True,
        "resolution": list(subset.config.fixed_size),
        "batch_size_per_device": settings["batch_size"],
        "num_train_images": 0 if is_reg else count * subset.repeats,
        "num_reg_images": count * subset.repeats if is_reg else 0,
        "enable_bucket": settings["buckets"],
        "bucket_info": _buckets(rows),
        "subsets": [
            {
                "img_count": count, "num_repeats": subset.repeats, "image_dir": folder_name(subset),
                "is_reg": is_reg, "class_tokens": subset.class_caption,
                "flip_aug": settings["flip"], "random_crop": settings["crop"] == "random",
                "shuffle_caption": settings["shuffle_captions"], "keep_tokens": settings["keep_tokens"],
                "caption_dropout_rate": settings["caption_dropout"], "caption_tag_dropout_rate": settings["tag_dropout"],
                "caption_prefix": settings["caption_prefix"], "caption_suffix": settings["caption_suffix"],
                "enable_wildcard": settings["wildcards"], "keep_tokens_separator": settings["keep_separator"] or None,
                "role": settings["role"], "loss_weight": settings["loss_weight"],
            }
        ],
    }  # fmt: skip


def _trained(plan: Plan, number: int) -> int:
    """Pictures of a subset that are not held out."""
    return sum(len(members) for subset, _, members in plan.buckets if subset == number)


def _pictures(plan: Plan, role: str) -> int:
    """Pictures of this role x their repeats; those for regularisation before they are cycled or cut."""
    subsets = enumerate(plan.dataset.subsets)
    return sum(_trained(plan, number) * subset.repeats for number, subset in subsets if subset.config.role == role)


def _folders(plan: Plan, role: str) -> dict[str, dict[str, int]] | None:
    """Repeats and pictures by folder; one that comes again has a number behind it."""
    out: dict[str, dict[str, int]] = {}
    for number, subset in enumerate(plan.dataset.subsets):
        if subset.config.role == role:
            name, again = folder_name(subset), 2
            while name in out:
                name, again = f"{folder_name(subset)} ({again})", again + 1
            out[name] = {"n_repeats": subset.repeats, "img_count": _trained(plan, number)}
    return out or None


def _bucket_info(plan: Plan) -> dict[str, Any]:
    return _buckets(plan.bucket_table())


def _buckets(rows: Sequence[BucketRow]) -> dict[str, Any]:
    return {"buckets": {str(i): {"resolution": list(row.size), "count": row.sightings} for i, row in enumerate(rows)}}
