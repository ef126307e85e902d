"""Small forms of what is large for its text encoders: SDXL's and Flux' CLIP, and a Flux transformer.

The host lets a text encoder's configuration be changed where it is built, so these are its own classes with its own tokenizers,
narrow and shallow, with random weights. Build them in inference mode, as a graph does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .tiny_models import Tensors, autoencoder, randomise, write

FLUX_TEXT = 64
"""Width of the small T5 and of the small CLIP-L beside it."""
SHALLOW = {"num_hidden_layers": 3, "intermediate_size": 64}  # SDXL reads the last layer but one
NARROW = {"hidden_size": FLUX_TEXT, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
SMALL_T5 = {"d_model": FLUX_TEXT, "d_kv": 32, "d_ff": 64, "num_heads": 2, "num_layers": 1}


def text_encoder(tokenizer: Any, model: Any, seed: int, **configurations: dict[str, int]) -> Any:
    """A CLIP; ``configurations``: what is changed, by the names of the encoders in it (``clip_l``, ``clip_g``, ``t5xxl``)."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    options = {f"{name}_model_config": values for name, values in configurations.items()}
    clip = comfy.sd.CLIP(ClipTarget(tokenizer, model), model_options=options)
    clip.cond_stage_model.load_state_dict(randomise(clip.cond_stage_model, seed))
    return clip


def sdxl_text_encoder() -> Any:
    """CLIP-L and CLIP-G of full width and three layers."""
    from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer

    return text_encoder(SDXLTokenizer, SDXLClipModel, 1, clip_l=SHALLOW, clip_g=SHALLOW)


def flux_text_encoder() -> Any:
    """CLIP-L and T5, both narrow."""
    from comfy.text_encoders.flux import FluxTokenizer, flux_clip

    return text_encoder(FluxTokenizer, flux_clip(), 2, clip_l=NARROW, t5xxl=SMALL_T5)


def flux(path: Path, seed: int) -> Path:
    """Flux dev's format, the transformer alone: a block of each kind and one attention head."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    model = Flux(
        in_channels=16, out_channels=16, vec_in_dim=FLUX_TEXT, context_in_dim=FLUX_TEXT, hidden_size=128, mlp_ratio=4.0,
        num_heads=1, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
        guidance_embed=True, txt_ids_dims=[], dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return write(path, {name: t + 1 if name.endswith(".scale") else t for name, t in randomise(model, seed).items()})


def flux_autoencoder(path: Path) -> Path:
    """16 channels, in TAESD's format."""
    return write(path, autoencoder(16, 5))


def sdxl_autoencoder() -> Tensors:
    return autoencoder(4, 6)
