"""LoRA metadata: kohya's ``ss_*`` keys, the ``modelspec`` standard, and the workflow that it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..config import TrainingConfig, to_dict
from ..dataset.plan import Plan
from ..dataset.samples import Dataset, Subset
from ..dataset.tags import tag_frequency
from ..errors import AtelierError
from ..files import Serialised
from ..optim import optimizers, schedules
from ..tensors.safetensors_header import read_header

BASE_VERSIONS = {"SD15": "sd_v1-5", "SD20": "sd_v2", "SDXL": "sdxl_base_v1-0", "SD3": "sd3", "Flux": "flux1"}
ARCHITECTURES = {
    "SD15": "stable-diffusion-v1/lora",
    "SDXL": "stable-diffusion-xl-v1-base/lora",
    "SD3": "stable-diffusion-3-medium/lora",
    "Flux": "flux-1-dev/lora",
}


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
) -> dict[str, str]:
    """Metadata of one saved epoch but for its ``content_hashes``; every value is a string, as the format demands.

    ``graph`` holds ``prompt`` and ``workflow`` as the canvas sent them, so that dropping the file there brings them back.
    The hashes are those of the bytes that ``Run.save_lora`` writes.
    """
    sizes = [s.config.resolution for s in dataset.subsets]
    values: dict[str, Any] = {
        "ss_base_model_version": BASE_VERSIONS.get(family, family.lower()),
        "ss_network_module": "networks.lora" if config.network.algorithm == "LoRA" else "lycoris.kohya",
        "ss_network_dim": config.network.rank,
        "ss_network_alpha": config.network.alpha or config.network.rank,
        "ss_network_args": {"algo": config.network.algorithm.lower(), "targets": config.network.targets},
        "ss_network_dropout": config.network.dropout,
        "ss_scale_weight_norms": config.network.scale_weight_norms or None,
        "ss_learning_rate": config.optimizer.peak,
        "ss_unet_lr": config.optimizer.peak if config.network.targets != "none" else None,
        "ss_text_encoder_lr": (config.text.learning_rate or config.optimizer.peak) if config.text.encoders != "none" else None,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_gradient_accumulation_steps": config.optimizer.accumulate,
        "ss_noise_offset": config.noise.offset or None,
        "ss_multires_noise_iterations": config.noise.pyramid_iterations or None,
        "ss_multires_noise_discount": config.noise.pyramid_discount if config.noise.pyramid_iterations else None,
        "ss_ip_noise_gamma": config.noise.perturbation or None,
        "ss_loss_type": config.loss.kind,
        "ss_min_snr_gamma": config.loss.snr_gamma if config.loss.weighting == "min-SNR" else None,
        "ss_debiased_estimation": config.loss.weighting == "debiased",
        "ss_optimizer": optimizers.title(config.optimizer),
        "ss_lr_scheduler": config.optimizer.schedule,
        "ss_lr_warmup_steps": schedules.warmup_steps(config.optimizer, total_steps),
        "ss_max_grad_norm": config.optimizer.clip_norm,
        "ss_num_epochs": -(-total_steps // plan.steps_per_epoch),
        "ss_epoch": epoch,
        "ss_steps": step,
        "ss_max_train_steps": total_steps,
        "ss_seed": config.seed,
        "ss_mixed_precision": config.precision,
        "ss_num_train_images": _sightings(plan, "training"),
        "ss_num_reg_images": _sightings(plan, "regularisation"),
        "ss_num_validation_images": sum(len(batch.samples) for batch in plan.validation),
        "ss_prior_loss_weight": next((s.config.loss_weight for s in dataset.subsets if s.config.role == "regularisation"), 1.0),
        "ss_num_batches_per_epoch": plan.steps_per_epoch,
        "ss_datasets": [_subset_summary(s) for s in dataset.subsets],
        "ss_bucket_info": _bucket_info(plan),
        "ss_tag_frequency": tag_frequency(dataset),
        "ss_training_comment": config.comment,
        "ss_training_finished_at": datetime.now(timezone.utc).timestamp(),
        "ss_output_name": config.name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES.get(family, f"{family.lower()}/lora"),
        "modelspec.implementation": "https://github.com/Comfy-Org/ComfyUI",
        "modelspec.title": config.name,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{max(sizes)}x{max(sizes)}",
        "modelspec.prediction_type": {"eps": "epsilon", "v": "v", "flow": "flow"}[prediction],
        "lora_atelier.config": to_dict(config),
        "lora_atelier.dataset": dataset.fingerprint,
        **{k: v for k, v in graph.items() if v},
    }
    return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in values.items() if v is not None}


def content_hashes(file: Serialised) -> dict[str, str]:
    """Sha256 of the file's bytes after its header; and the older web UI's: of 64 KiB from offset 1 MiB, 8 digits."""
    legacy = hashlib.sha256(file.plain[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": hashlib.sha256(file.data).hexdigest(), "sshs_legacy_hash": legacy}


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


def _subset_summary(subset: Subset) -> dict[str, Any]:
    settings = to_dict(subset.config)
    return {
        "resolution": [settings["resolution"]] * 2,
        "batch_size_per_device": settings["batch_size"],
        "num_train_images": len(subset.samples) * subset.repeats,
        "enable_bucket": settings["buckets"],
        "subsets": [
            {
                "img_count": len(subset.samples), "num_repeats": subset.repeats, "image_dir": settings["folder"],
                "is_reg": settings["role"] == "regularisation", "class_tokens": subset.class_caption,
                "flip_aug": settings["flip"], "random_crop": settings["crop"] == "random",
                "shuffle_caption": settings["shuffle_captions"], "keep_tokens": settings["keep_tokens"],
                "caption_dropout_rate": settings["caption_dropout"], "caption_tag_dropout_rate": settings["tag_dropout"],
                "caption_prefix": settings["caption_prefix"], "caption_suffix": settings["caption_suffix"],
                "role": settings["role"], "loss_weight": settings["loss_weight"],
            }
        ],
    }  # fmt: skip


def _sightings(plan: Plan, role: str) -> int:
    """Pictures of this role shown per epoch, repeats included."""
    return sum(row.sightings for row in plan.bucket_table() if plan.dataset.subsets[row.subset].config.role == role)


def _bucket_info(plan: Plan) -> dict[str, Any]:
    buckets = {
        str(i): {"resolution": list(row.size), "count": row.sightings} for i, row in enumerate(plan.bucket_table())
    }  # fmt: skip
    return {"buckets": buckets}
