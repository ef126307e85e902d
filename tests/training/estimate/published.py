"""Published models by their sizes alone: the settings that the host's detection reads from their files, on the meta device."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from lora_atelier.training import host

from ...zoo.recipes import chroma, flux, flux2, hunyuan, lumina, mmdit, predict2, unet, wan


def _mmdit(depth: int, **settings: Any) -> dict[str, Any]:
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    return mmdit(depth=depth, context_embedder_config=embedder, **settings)


SDXL = unet(
    2048, channel_mult=[1, 2, 4], num_res_blocks=[2] * 3, transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10, use_linear_in_transformer=True,
    num_classes="sequential", adm_in_channels=2816,
)  # fmt: skip
WIDE = {"model_channels": 2048, "num_blocks": 28, "num_heads": 16, "adaln_lora_dim": 256}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "SD 1.5": (
        "SD15",
        unet(
            768, channel_mult=[1, 2, 4, 4], num_res_blocks=[2] * 4, transformer_depth=[1] * 6 + [0] * 2,
            transformer_depth_output=[1] * 9 + [0] * 3,
        ),
    ),
    "SDXL": ("SDXL", SDXL),
    "SD 3.5 medium": (
        "SD3", _mmdit(24, num_patches=147456, pos_embed_max_size=384, x_block_self_attn_layers=list(range(13)))
    ),
    "SD 3.5 large": ("SD3", _mmdit(38, num_patches=36864, pos_embed_max_size=192)),
    "Flux dev": (
        "Flux", flux(num_heads=24, hidden_size=3072, context_in_dim=4096, vec_in_dim=768, depth=19, depth_single_blocks=38)
    ),
    "Flux.2 dev": ("Flux2", flux2(num_heads=48, hidden_size=6144, context_in_dim=15360, depth=8, depth_single_blocks=48)),
    "Flux.2 klein 4B": (
        "Flux2",
        flux2(num_heads=24, hidden_size=3072, context_in_dim=7680, depth=5, depth_single_blocks=20, guidance_embed=False),
    ),
    "Flux.2 klein 9B": (
        "Flux2",
        flux2(num_heads=32, hidden_size=4096, context_in_dim=12288, depth=8, depth_single_blocks=24, guidance_embed=False),
    ),
    "Chroma": (
        "Chroma",
        chroma(
            num_heads=24, hidden_size=3072, context_in_dim=4096, depth=19, depth_single_blocks=38, out_dim=3072, hidden_dim=5120,
            n_layers=5,
        ),
    ),
    "Z-Image": (
        "ZImage",
        lumina(
            dim=3840, cap_feat_dim=2560, n_layers=30, n_refiner_layers=2, n_heads=30, n_kv_heads=30, axes_dims=[32, 48, 48],
            axes_lens=[1536, 512, 512], rope_theta=256.0, ffn_dim_multiplier=8.0 / 3.0, multiple_of=256, z_image_modulation=True,
            time_scale=1000.0, pad_tokens_multiple=32,
        ),
    ),
    "Lumina 2": (
        "Lumina2",
        lumina(
            dim=2304, cap_feat_dim=2304, n_layers=26, n_refiner_layers=2, n_heads=24, n_kv_heads=8, axes_dims=[32, 32, 32],
            ffn_dim_multiplier=4.0, multiple_of=256,
        ),
    ),
    "Qwen-Image": (
        "QwenImage",
        {
            "image_model": "qwen_image", "in_channels": 64, "num_layers": 60, "num_attention_heads": 24,
            "joint_attention_dim": 3584,
        },
    ),
    "Krea 2": (
        "Krea2",
        {
            "image_model": "krea2", "features": 6144, "channels": 16, "patch": 2, "layers": 28, "heads": 48, "kvheads": 12,
            "txtlayers": 12, "txtdim": 2560,
        },
    ),
    "HunyuanImage 2.1": (
        "HunyuanImage21", hunyuan(hidden_size=3584, num_heads=28, depth=20, depth_single_blocks=40, context_in_dim=3584)
    ),
    "Wan 14B": ("WAN21_T2V", wan(dim=5120, num_heads=40, ffn_dim=13824, num_layers=40)),
    "Wan 1.3B": ("WAN21_T2V", wan(dim=1536, num_heads=12, ffn_dim=8960, num_layers=30)),
    "Wan 2.2 5B": ("WAN22_T2V", wan(dim=3072, num_heads=24, ffn_dim=14336, num_layers=30, in_dim=48, out_dim=48)),
    "Anima": ("Anima", predict2(image_model="anima", **WIDE)),
    "Cosmos-Predict2 2B": ("CosmosT2IPredict2", predict2(**WIDE)),
}  # fmt: skip


@cache
def outline(name: str) -> host.Outline:
    """The layers of a published model, held in bf16."""
    import comfy.supported_models

    family, settings = PUBLISHED[name]
    config = getattr(comfy.supported_models, family)(dict(settings))
    config.unet_config.update(settings)
    config.set_inference_dtype(torch.bfloat16, torch.bfloat16)
    return host.Outline(config.get_model({}, "", device=torch.device("meta")), torch.bfloat16)
