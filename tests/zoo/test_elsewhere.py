"""A LoRA from here in diffusers, and one from diffusers here: the same change of the same network's answer.

Both sides have the same random weights. The file goes through the pipelines' own ``load_lora_weights``, and what they save with
``save_lora_weights`` is read back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.families import family_named
from lora_atelier.training.network import lora_file, targets
from lora_atelier.training.network.adapter import Adapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import diffusers_twins
from .build import Animal, build
from .recipes import SDXL_TEXT, Recipe, cond, flux, mmdit, unet, wan

pytestmark = pytest.mark.cpu_only("what a file means is the same on every device, and diffusers' side is built on the CPU")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Twin:
    """The same network as diffusers has it."""

    pipeline: Any
    network: nn.Module
    answer: Callable[[Tensor, Tensor, Tensors], Tensor]
    """(noisy latents, level, text) -> what the network says of them, in the shape of the latents."""
    layers: str
    """The argument of ``save_lora_weights`` that takes its layers."""
    spelt: Callable[[Tensors], Tensors] = lambda tensors: tensors
    """The file in names that diffusers reads, where it does not read ours."""
    known: bool = True
    """Whether this ComfyUI knows the names that diffusers writes."""


def weights(animal: Animal) -> Tensors:
    return {name: tensor.float().clone() for name, tensor in animal.model.base.diffusion_model.state_dict().items()}


def of_unet(animal: Animal, network: nn.Module, pipeline: Any, extras: Callable[[Tensors], dict[str, Any]]) -> Twin:
    """eps models: diffusers wants the noisy latents at unit variance, and the level as one of 1000 steps."""
    import comfy.utils

    wanted, ours = network.state_dict().keys(), weights(animal)
    names = comfy.utils.unet_to_diffusers(animal.model.base.model_config.unet_config)
    network.load_state_dict({theirs: ours[name] for theirs, name in names.items() if theirs in wanted})

    def answer(x: Tensor, sigma: Tensor, text: Tensors) -> Tensor:
        step = animal.model.sampling.timestep(sigma)
        return network(x / (1 + sigma**2).sqrt(), step, encoder_hidden_states=text["cond"], **extras(text)).sample

    return Twin(pipeline, network, answer, "unet_lora_layers")


def sd15(animal: Animal) -> Twin:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    network = diffusers_twins.sd15()
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipeline = StableDiffusionPipeline(None, None, None, network, scheduler, None, None, requires_safety_checker=False)
    return of_unet(animal, network, pipeline, lambda text: {})


def sdxl(animal: Animal) -> Twin:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    network = UNet2DConditionModel(
        block_out_channels=(64,) * 3, layers_per_block=1, cross_attention_dim=2048, attention_head_dim=1,
        transformer_layers_per_block=(1, 1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipeline = StableDiffusionXLPipeline(*[None] * 5, network, scheduler, add_watermarker=False)
    size = animal.size
    times = torch.tensor([[size[n] for n in ("height", "width", "crop_h", "crop_w", "target_height", "target_width")]])
    return of_unet(
        animal, network, pipeline,
        lambda text: {"added_cond_kwargs": {"text_embeds": text["pooled_output"], "time_ids": times.float()}},
    )  # fmt: skip


def sd3(animal: Animal) -> Twin:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    network = diffusers_twins.sd3(weights(animal))
    pipeline = StableDiffusion3Pipeline(network, FlowMatchEulerDiscreteScheduler(), *[None] * 7)

    def spelt(tensors: Tensors) -> Tensors:
        """diffusers has no reader for kohya's names of this family; the fused projection's rows are query, key and value."""
        out = {}
        for layer, theirs in diffusers_twins.sd3_layers().items():
            ours = "lora_unet_" + layer.replace(".", "_")
            if ours + ".lora_up.weight" in tensors:  # the text's stream ends in the last block
                whole = tensors[ours + ".lora_up.weight"] * (tensors[ours + ".alpha"] / len(tensors[ours + ".lora_down.weight"]))
                for name, up in zip(theirs, whole.chunk(len(theirs)), strict=True):
                    out[f"transformer.{name}.lora_A.weight"] = tensors[ours + ".lora_down.weight"].clone()
                    out[f"transformer.{name}.lora_B.weight"] = up.contiguous()
        return out

    def answer(x: Tensor, sigma: Tensor, text: Tensors) -> Tensor:
        return network(x, text["cond"], text["pooled_output"], 1000 * sigma).sample

    return Twin(pipeline, network, answer, "transformer_lora_layers", spelt)


def packed(x: Tensor) -> Tensor:
    """(1, C, H, W) as one token for every 2 x 2 cells."""
    from diffusers import FluxPipeline

    return FluxPipeline._pack_latents(x, *x.shape)


def unpacked(x: Tensor, like: Tensor) -> Tensor:
    from diffusers import FluxPipeline

    return FluxPipeline._unpack_latents(x, like.shape[2], like.shape[3], 1)


def flux_dev(animal: Animal) -> Twin:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        network = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=24, joint_attention_dim=64,
            pooled_projection_dim=32, guidance_embeds=True,
        )  # fmt: skip
    ours = {re.sub(r"((query|key)_norm)\.weight$", r"\1.scale", name): tensor for name, tensor in weights(animal).items()}
    network.load_state_dict(convert_flux_transformer_checkpoint_to_diffusers(ours), assign=True)
    pipeline = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, network)
    guidance = torch.tensor([family_named(animal.model.family).guidance])

    def answer(x: Tensor, sigma: Tensor, text: Tensors) -> Tensor:
        ids = pipeline._prepare_latent_image_ids(1, x.shape[2] // 2, x.shape[3] // 2, x.device, x.dtype)
        found = network(
            packed(x), text["cond"], text["pooled_output"], sigma, ids, torch.zeros(text["cond"].shape[1], 3), guidance
        ).sample
        return unpacked(found, x)

    return Twin(pipeline, network, answer, "transformer_lora_layers")


def qwen_image(animal: Animal) -> Twin:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    network = QwenImageTransformer2DModel(num_layers=2, num_attention_heads=1, joint_attention_dim=64)
    network.load_state_dict(weights(animal))
    pipeline = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, network)

    def answer(x: Tensor, sigma: Tensor, text: Tensors) -> Tensor:
        flat, tokens = x.squeeze(2), text["cond"].shape[1]
        height, width = flat.shape[2:]
        found = network(
            packed(flat), encoder_hidden_states=text["cond"], encoder_hidden_states_mask=torch.ones(1, tokens, dtype=torch.long),
            timestep=sigma, img_shapes=[[(1, height // 2, width // 2)]],
        ).sample  # fmt: skip
        return unpacked(found, flat).view(x.shape)

    return Twin(pipeline, network, answer, "transformer_lora_layers")


def wan21(animal: Animal) -> Twin:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    network = WanTransformer3DModel(num_attention_heads=1, attention_head_dim=128, ffn_dim=256, num_layers=2)
    network.load_state_dict(convert_wan_transformer_to_diffusers(weights(animal)))
    pipeline = WanPipeline(None, None, None, FlowMatchEulerDiscreteScheduler(), network)

    def answer(x: Tensor, sigma: Tensor, text: Tensors) -> Tensor:
        return network(x, 1000 * sigma, text["cond"]).sample

    return Twin(pipeline, network, answer, "transformer_lora_layers", known=False)


SD15 = unet(
    768, transformer_depth_output=[1, 1, 1, 1], num_res_blocks=[1, 1], channel_mult=[1, 1], transformer_depth=[1, 1],
)  # fmt: skip
SDXL = unet(
    2048, model_channels=64, channel_mult=[1] * 3, num_res_blocks=[1] * 3, transformer_depth=[0, 1, 2],
    transformer_depth_output=[0, 0, 1, 1, 2, 2], transformer_depth_middle=2, use_linear_in_transformer=True,
    num_classes="sequential", adm_in_channels=2816,
)  # fmt: skip
QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 64}
# diffusers takes the width of Flux for granted when it parts the fused matrices of a LoRA.
WIDE = flux(hidden_size=3072, num_heads=24, depth=1, depth_single_blocks=1)
CASES = {
    "SD 1.5": (Recipe("SD 1.5", "SD15", SD15, cond(768, 77)), sd15),
    "SDXL": (Recipe("SDXL", "SDXL", SDXL, SDXL_TEXT, loads=False), sdxl),
    "SD 3": (Recipe("SD 3", "SD3", mmdit(), cond(4096, pooled_output=(1, 2048))), sd3),
    "Flux": (Recipe("Flux dev", "Flux", WIDE, cond(64, pooled_output=(1, 32))), flux_dev),
    "Qwen-Image": (Recipe("Qwen-Image", "QwenImage", QWEN, cond(64), loads=False), qwen_image),
    "Wan 2.1": (Recipe("Wan 2.1", "WAN21_T2V", wan(), cond(4096)), wan21),
}


def far(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("name", CASES)
def test_a_lora_means_the_same_in_diffusers_and_here(name, comfyui, tmp_path: Path, record_property) -> None:
    from peft.utils import get_peft_model_state_dict

    recipe, make = CASES[name]
    animal = build(recipe)
    model, twin = animal.model, make(animal)
    layers, names = model.layers(), model.lora_names()
    chosen = targets.choose({n: layer for n, layer in layers.items() if n in names}, "attention + feed-forward")
    chosen = {n: chosen[n] for n in family_named(model.family).without_untrainable(chosen)}
    adapter = Adapter.fresh(chosen, NetworkConfig(rank=2, alpha=1.0), 3)
    stream = torch.Generator().manual_seed(3)
    for branch in adapter.branches.values():
        branch.up.data = torch.randn(branch.up.shape, generator=stream) * 0.3
    x, sigma, text = animal.latents(1), animal.levels(2)[:1], animal.conditioning(0)

    def here(other: Adapter | None) -> Tensor:
        with torch.no_grad(), model.hold():
            conditions = [model.condition(text, x, animal.size)]
            if other is None:
                return model.predict(x, sigma, conditions)
            with other.attached(layers):
                return model.predict(x, sigma, conditions)

    def there() -> Tensor:
        with torch.no_grad():
            return twin.answer(x, sigma, text)

    plain, live = here(None), here(adapter)
    assert far(there(), plain) < 1e-4
    assert far(live, plain) > 1e-2

    save_file(twin.spelt(lora_file.to_file(adapter, names, model.family, torch.float32)), tmp_path / "ours.safetensors")
    twin.pipeline.load_lora_weights(tmp_path, weight_name="ours.safetensors", adapter_name="ours")
    assert far(there() - plain, live - plain) < 2e-3

    record_property("back", twin.known)
    if not twin.known:
        return
    learnt = {n: tensor.clone() for n, tensor in get_peft_model_state_dict(twin.network, adapter_name="ours").items()}
    twin.pipeline.save_lora_weights(tmp_path, **{twin.layers: learnt})
    back = Adapter(lora_file.read(load_file(tmp_path / "pytorch_lora_weights.safetensors"), layers, names)[0])
    assert back.branches.keys() == adapter.branches.keys()
    # diffusers writes no alpha, so its file means what diffusers itself makes of it: with a scale of 1.
    twin.pipeline.unload_lora_weights()
    twin.pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors", adapter_name="back")
    assert far(here(back) - plain, there() - plain) < 2e-3
