"""Between the small file in the repository and the checkpoint that ComfyUI loads.

The repository holds the trained parts only: matrices as int8 with one scale a row, everything else as float16, and no column
that is zero by construction. CLIP-L's 123 M numbers are generated from a seed, since the demo model was trained on that very
random text encoder. ``assemble`` puts both together as one ordinary SD3-format checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

CLIP_SEED = 20_26
CLIP_WIDTH, CLIP_LAYERS, CLIP_VOCABULARY, CLIP_POSITIONS = 768, 12, 49408, 77
ROW_SCALE = ".row_scale"
# The embedders are as wide as SD3's three text encoders together; CLIP-L fills the first 768 columns.
ZERO_PADDED = {
    "model.diffusion_model.context_embedder.weight": 4096,
    "model.diffusion_model.y_embedder.mlp.0.weight": 2048,
}
PICKED_MINIMUM = 4096  # smaller tensors stay float16


def pack(tensors: dict[str, torch.Tensor], path: Path) -> int:
    """Write the repository's file and return its size in bytes."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name in ZERO_PADDED:
            tensor = tensor[:, :CLIP_WIDTH]
        if name.startswith("model.") and tensor.ndim == 2 and tensor.numel() > PICKED_MINIMUM:
            scale = tensor.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
            out[name] = torch.round(tensor / scale).to(torch.int8).contiguous()
            out[name + ROW_SCALE] = scale.float().contiguous()
        else:
            out[name] = tensor.half().contiguous()
    save_file(out, path)
    return path.stat().st_size


def unpack(path: Path) -> dict[str, torch.Tensor]:
    packed = load_file(path)
    out: dict[str, torch.Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(ROW_SCALE):
            continue
        if tensor.dtype == torch.int8:
            tensor = tensor.float() * packed[name + ROW_SCALE]
        if name in ZERO_PADDED:
            tensor = torch.nn.functional.pad(tensor, (0, ZERO_PADDED[name] - tensor.shape[1]))
        out[name] = tensor.half().contiguous()
    return out


def random_clip_l(seed: int = CLIP_SEED) -> dict[str, torch.Tensor]:
    """CLIP-L's transformer with uniform random weights, the same on every machine.

    NumPy's ``RandomState`` is used because its stream is frozen for good, unlike ``torch.randn``'s. The spreads (standard
    deviations) keep every token's own embedding strong in the hidden state while attention mixes its neighbours in.
    """
    stream = np.random.RandomState(seed)

    def uniform(*shape: int, std: float) -> torch.Tensor:
        return torch.from_numpy(((stream.random_sample(shape) - 0.5) * (std * 12**0.5)).astype(np.float16))

    width, prefix = CLIP_WIDTH, "transformer.text_model."
    out = {
        prefix + "embeddings.token_embedding.weight": uniform(CLIP_VOCABULARY, width, std=0.5),
        prefix + "embeddings.position_embedding.weight": uniform(CLIP_POSITIONS, width, std=0.1),
    }
    for layer in range(CLIP_LAYERS):
        base = f"{prefix}encoder.layers.{layer}."
        for name, rows, columns, gain in (
            ("self_attn.q_proj", width, width, 1.5),
            ("self_attn.k_proj", width, width, 1.5),
            ("self_attn.v_proj", width, width, 1.0),
            ("self_attn.out_proj", width, width, 0.35),
            ("mlp.fc1", 4 * width, width, 1.0),
            ("mlp.fc2", width, 4 * width, 0.25),
        ):
            out[base + name + ".weight"] = uniform(rows, columns, std=gain * columns**-0.5)
            out[base + name + ".bias"] = torch.zeros(rows, dtype=torch.float16)
        for name in ("layer_norm1", "layer_norm2"):
            out[base + name + ".weight"] = torch.ones(width, dtype=torch.float16)
            out[base + name + ".bias"] = torch.zeros(width, dtype=torch.float16)
    out[prefix + "final_layer_norm.weight"] = torch.ones(width, dtype=torch.float16)
    out[prefix + "final_layer_norm.bias"] = torch.zeros(width, dtype=torch.float16)
    out["transformer.text_projection.weight"] = torch.eye(width, dtype=torch.float16)
    return out


def assemble(packed: Path, checkpoint: Path) -> Path:
    """Write the whole checkpoint (atomically, also where several processes do so at once) for ``models/checkpoints``."""
    tensors = unpack(packed)
    tensors |= {f"text_encoders.clip_l.{name}": tensor for name, tensor in random_clip_l().items()}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, partial, metadata={"modelspec.title": "LoRA Atelier demo model", "modelspec.license": "see demo/CARD.md"})
    partial.replace(checkpoint)
    return checkpoint


def load_text_encoder() -> Any:
    """The host's SD3 CLIP object with only CLIP-L, holding the generated weights."""
    import comfy.sd
    import comfy.text_encoders.sd3_clip as sd3

    class Target:
        params: ClassVar[dict[str, Any]] = {}
        clip = sd3.sd3_clip(clip_l=True, clip_g=False, t5=False)
        tokenizer = sd3.SD3Tokenizer

    state = {k.removeprefix("transformer."): v for k, v in random_clip_l().items()}
    clip = comfy.sd.CLIP(Target(), parameters=123_000_000)
    _, unexpected = clip.cond_stage_model.clip_l.transformer.load_state_dict(state, strict=False)
    if unexpected:
        raise RuntimeError(f"the host's CLIP-L does not know {unexpected}")
    return clip
