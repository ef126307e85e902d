"""The LoRA file format: which name a layer has in the file, and what stands under it.

The names are the host's own (it knows every dialect it can load); here only the dialect is chosen that the other tools read
too: kohya's for Stable Diffusion and Flux, PEFT's ``diffusion_model.*.lora_A`` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .attach import Adapter
from .lora import LoRALayer

# Prefixes in order of preference, by the host's name of the model family.
DIFFUSERS_UNET = ("lora_unet_down_blocks_", "lora_unet_mid_block_", "lora_unet_up_blocks_", "lora_unet_")
KOHYA = ("lora_unet_",)
PEFT = ("diffusion_model.",)
DIALECTS: Mapping[str, tuple[str, ...]] = {
    "SD15": DIFFUSERS_UNET,
    "SD15_instructpix2pix": DIFFUSERS_UNET,
    "SD20": DIFFUSERS_UNET,
    "SD21UnclipL": DIFFUSERS_UNET,
    "SD21UnclipH": DIFFUSERS_UNET,
    "SDXL": KOHYA,
    "SDXLRefiner": KOHYA,
    "SDXL_instructpix2pix": KOHYA,
    "SSD1B": KOHYA,
    "Segmind_Vega": KOHYA,
    "KOALA_700M": KOHYA,
    "KOALA_1B": KOHYA,
    "SD3": KOHYA,
    "Flux": KOHYA,
    "FluxInpaint": KOHYA,
    "FluxSchnell": KOHYA,
}


def file_name_of(layer: str, known: Sequence[str], family: str) -> str:
    """The name of ``layer`` (dotted, under ``diffusion_model.``) in the file.

    ``known`` are the names under which the host would find this layer.
    """
    generic = {"lora_unet_": "lora_unet_" + layer.replace(".", "_"), "diffusion_model.": "diffusion_model." + layer}
    for prefix in DIALECTS.get(family, PEFT):
        if generic.get(prefix) in known:
            return generic[prefix]
        for name in known:
            if name.startswith(prefix) and name not in generic.values():
                return name
    raise ValueError(f"the host knows no LoRA name for {layer}")


def to_file(adapter: Adapter, names: Mapping[str, Sequence[str]], family: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors for the safetensors file. The scale is folded into ``up`` so that alpha equals rank and every loader agrees."""
    peft = DIALECTS.get(family, PEFT) is PEFT
    out = {}
    for layer, branch in adapter.branches.items():
        name = file_name_of(layer, names[layer], family)
        up, down = (".lora_B.weight", ".lora_A.weight") if peft else (".lora_up.weight", ".lora_down.weight")
        out[name + up] = (branch.up.detach().float() * branch.scale).to("cpu", dtype, copy=True).contiguous()
        out[name + down] = branch.down.detach().to("cpu", dtype, copy=True).contiguous()
        out[name + ".alpha"] = torch.tensor(float(branch.rank), dtype=dtype)
    return out


def from_file(
    tensors: Mapping[str, Tensor], layers: Mapping[str, torch.nn.Module], names: Mapping[str, Sequence[str]]
) -> Adapter:
    """The adapter that a file describes, for the layers it names. Reads kohya's and PEFT's spelling.

    Raises ValueError when nothing in the file fits this model.
    """
    branches = {}
    for layer, module in layers.items():
        for name in names.get(layer, ()):
            pair = _pair(tensors, name)
            if pair is not None:
                down, up = pair
                alpha = tensors.get(f"{name}.alpha")
                scale = float(alpha) / down.shape[0] if alpha is not None else 1.0
                branch = LoRALayer(module, down.shape[0], scale)
                branch.down.data = down.float().reshape(branch.down.shape).clone()
                branch.up.data = up.float().reshape(branch.up.shape).clone()
                branches[layer] = branch
                break
    if not branches:
        raise ValueError("none of the file's layers belong to this model")
    return Adapter(branches)


def _pair(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor] | None:
    for down, up in ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")):
        if name + down in tensors and name + up in tensors:
            return tensors[name + down], tensors[name + up]
    return None
