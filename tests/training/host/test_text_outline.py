"""Text encoders counted by their files' headers."""

from __future__ import annotations

from pathlib import Path

import torch
from lora_atelier.training import host
from lora_atelier.training.config import TrainingConfig
from lora_atelier.training.estimate.recipe import sizes
from lora_atelier.training.tensors.safetensors_header import read_header
from safetensors.torch import save_file


def config(encoders: str) -> TrainingConfig:
    from lora_atelier.training.config import NetworkConfig, TextConfig

    return TrainingConfig("a", network=NetworkConfig(rank=4, targets="none"), text=TextConfig(encoders))  # type: ignore[arg-type]


def test_encoders_in_files_of_their_own_are_counted_by_kind(comfyui: object, tmp_path: Path) -> None:
    """A CLIP with one layer that is trained and a T5 with one; the token tables are no layers that are trained."""
    q, table = torch.zeros(64, 32, dtype=torch.float16), torch.zeros(100, 32, dtype=torch.float16)
    clip = {"text_model.encoder.layers.0.self_attn.q_proj.weight": q, "text_model.embeddings.token_embedding.weight": table}
    t5 = {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(16, 48, dtype=torch.float16), "shared.weight": table}
    save_file(clip, tmp_path / "clip.safetensors")
    save_file(t5, tmp_path / "t5.safetensors")
    found = host.text_outline([read_header(tmp_path / f"{name}.safetensors") for name in ("clip", "t5")])
    assert found is not None
    layers, size = found
    assert size == 2 * (64 * 32 + 16 * 48 + 2 * 100 * 32)
    # Two fp16 matrices of rank 4 and an alpha of two bytes a layer, beside some hundred bytes of names.
    only_clip, both = 2 * 4 * (64 + 32) + 2, 2 * 4 * (64 + 32 + 16 + 48) + 4
    for encoders, numbers, count in (("clip", only_clip, 1), ("all", both, 2)):
        total, memory, _ = sizes(config(encoders), {}, {}, layers)
        assert total is not None and memory is not None and numbers < total <= numbers + count * 400


def test_a_file_without_an_encoder_says_nothing(comfyui: object, tmp_path: Path) -> None:
    save_file({"bias": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert host.text_outline([read_header(tmp_path / "x.safetensors")]) is None
    assert sizes(config("all"), {}, {}, None) == (None, None, None)
