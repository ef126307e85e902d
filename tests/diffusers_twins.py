"""Two of the tiny networks as diffusers has them, and what their layers are called there."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def sd15() -> Any:
    """SD 1.5's UNet with two levels of one block, without weights of its own."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(320, 320), layers_per_block=1, cross_attention_dim=768, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip


def sd3(weights: dict[str, Tensor]) -> Any:
    """SD 3's transformer with two blocks and the host's ``weights``."""
    from diffusers import SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    network = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=4096, caption_projection_dim=128, pooled_projection_dim=2048, pos_embed_max_size=16,
        qk_norm="rms_norm",
    )  # fmt: skip
    network.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(weights)))
    return network


def sd3_layers() -> dict[str, list[str]]:
    """For each layer of the host's transformer those of diffusers that it is made of, one below the other."""
    out: dict[str, list[str]] = {}
    for i in range(2):
        theirs = f"transformer_blocks.{i}."
        for part, qkv, attention, ff in (
            ("x_block", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
            ("context_block", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
        ):
            block = f"joint_blocks.{i}.{part}."
            out[block + "attn.qkv"] = [f"{theirs}attn.{name}" for name in qkv]
            out[block + "attn.proj"] = [f"{theirs}attn.{attention}"]
            out[block + "mlp.fc1"], out[block + "mlp.fc2"] = [f"{theirs}{ff}.net.0.proj"], [f"{theirs}{ff}.net.2"]
    return out
