"""Model detection from a file's header, and models on the meta device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor, nn

from ..families import family_named
from ..performance.eight_bit_layers import spared
from ..performance.memory import Weights
from ..tensors.safetensors_header import Header
from .answering import AnsweringModel
from .model_facts import ModelFacts

log = logging.getLogger("lora-atelier")
WIDTHS = ("context_dim", "context_in_dim", "joint_attention_dim", "crossattn_emb_channels", "cap_feat_dim", "caption_channels")
"""What networks call the width of the text that they read."""


def _detected(header: Header) -> tuple[Any, dict[str, Tensor], str] | None:
    """The host's configuration of the model in a file, with the tensors (without contents) and the prefix it was found by."""
    from comfy import model_detection

    tensors = {k: v for k, v in header.tensors().items() if not k.endswith((".comfy_quant", "scaled_fp8"))}
    prefix = model_detection.unet_prefix_from_state_dict(tensors)
    found = model_detection.model_config_from_unet(tensors, prefix, metadata=header.metadata)
    if found is not None:
        return found, tensors, prefix
    bare = comfy.utils.state_dict_prefix_replace(dict(tensors), {prefix: ""}, filter_keys=True) or tensors
    found = model_detection.model_config_from_unet(bare, "", metadata=header.metadata)
    if found is None:
        converted = model_detection.convert_diffusers_mmdit(bare, "")
        if converted is None:
            found = model_detection.model_config_from_diffusers_unet(bare)
        else:
            bare, found = converted, model_detection.model_config_from_unet(converted, "")
    return None if found is None else (found, bare, "")


def family_of(header: Header) -> str | None:
    """The host's name of the family (as ``Model.family``) of the model in a file; None if it knows none."""
    try:
        found = _detected(header)
    except Exception as error:  # the host's detection meets a file that it was not written for
        log.info("the host could not tell a model's family: %s", error)
        return None
    return None if found is None else type(found[0]).__name__


class Outline(AnsweringModel):
    """A model of layers without any weights, on torch's meta device: for counting, and for passes that only tell shapes."""

    def __init__(self, base: Any, stored: torch.dtype):
        nowhere = torch.device("meta")
        super().__init__(comfy.model_patcher.ModelPatcher(base.to(nowhere), nowhere, nowhere))
        blocks = tuple(_numbers(block) * stored.itemsize for block in self.blocks())
        outside = _numbers(self.base.diffusion_model) * stored.itemsize - sum(blocks)
        self.stored = Weights(blocks, outside, tuple(map(spared, self.blocks())))
        """What its weights take where it works."""

    def text(self, seen: int = 0) -> dict[str, Tensor] | None:
        """What its text encoders give for a caption beside so many pictures that they see; None for families of which that is not
        known."""
        usual = family_named(self.family).text
        if usual is None:
            return None
        settings = self.base.model_config.unet_config
        (width, *_) = [settings[key] for key in WIDTHS if isinstance(settings.get(key), int)] or [usual.width]
        pooled = settings.get("vec_in_dim") or usual.pooled
        extras = {"pooled_output": torch.empty(1, pooled, device="meta")} if usual.pooled else {}
        return {"cond": torch.empty(1, usual.tokens + seen * usual.seen, width, device="meta"), **extras}

    def control(self, size: tuple[int, int]) -> Tensor:
        """The latent of a control picture of so many pixels (width, height), as a VAE gives it."""
        found = self.latents(size)
        return found.unsqueeze(2) if self.frames else found

    @property
    def cell(self) -> int | None:
        """Pixels, across, of one of its latents' cells; None where the host doesn't tell."""
        return getattr(self.base.latent_format, "spacial_downscale_ratio", None)

    @property
    def frames_each(self) -> int:
        """Frames of a film for each frame of its latent after the first; of hosts that don't tell, and of most models, four."""
        told = getattr(self.base.latent_format, "temporal_downscale_ratio", 1)
        return int(told) if told > 1 else 4

    def latents(self, size: tuple[int, int]) -> Tensor:
        """Those of a picture of so many pixels (width, height), as a VAE gives them."""
        cells = self.cell or 8
        return torch.empty(1, self.latent_channels, size[1] // cells, size[0] // cells, device="meta")


def outline_of(model: ModelFacts) -> Outline | None:
    """A loaded model without its weights; None if the host cannot make one, or if other nodes have a part in what it is."""
    if model.is_altered:
        return None
    loaded, network = model.base.model_config, model.base.diffusion_model
    try:
        config = type(loaded)(dict(loaded.unet_config))
        config.unet_config = dict(loaded.unet_config)  # of some families the host completes it
        config.set_inference_dtype(torch.float32, None)
        found = Outline(config.get_model({}, "", device="meta"), torch.float32)
    except Exception as error:  # many families, many ways to ask for what is in a file
        log.info("there is no outline of %s: %s", model.family, error)
        return None
    return found if type(found.base) is type(model.base) and _form(found.base.diffusion_model) == _form(network) else None


def _form(network: nn.Module) -> dict[str, tuple[int, int]]:
    """How its linear layers are called and how wide they are."""
    found = network.named_modules()
    return {name: (m.in_features, m.out_features) for name, m in found if isinstance(m, nn.Linear)}


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def outline(header: Header, dtype: torch.dtype | None = None) -> Outline | None:
    """The model in a file by its header alone, computing in ``dtype`` (None: in what the host chooses).

    None if the host cannot make one.
    """
    management = comfy.model_management
    try:
        found = _detected(header)
        if found is None:
            return None
        config, tensors, prefix = found
        device, kinds = management.get_torch_device(), list(config.supported_inference_dtypes)
        count = comfy.utils.calculate_parameters(tensors, prefix)
        stored = management.unet_dtype(None, count, kinds, comfy.utils.weight_dtype(tensors, prefix))
        config.set_inference_dtype(stored, dtype or management.unet_manual_cast(stored, device, kinds))
        return Outline(config.get_model(tensors, prefix, device="meta"), stored)
    except Exception as error:  # many families, many ways to ask for what a header does not hold
        log.info("a model's layers could not be counted: %s", error)
        return None


def text_outline(headers: Sequence[Header]) -> tuple[dict[str, nn.Linear], int] | None:
    """(linear layers on the meta device, bytes of all weights) of the text encoders in these files, by the names that
    ``TextEncoder.layers`` gives; None where they hold none. Of a checkpoint only its text encoders count."""
    layers: dict[str, nn.Linear] = {}
    size = 0
    for header in headers:
        for name, tensor in _text_tensors(header).items():
            size += tensor.numel() * tensor.dtype.itemsize
            if name.endswith(".weight") and tensor.ndim == 2:
                outputs, inputs = tensor.shape
                layers[name.removesuffix(".weight")] = nn.Linear(inputs, outputs, bias=False, device="meta")
    return (layers, size) if layers else None


def _text_tensors(header: Header) -> dict[str, Tensor]:
    """Those of text encoders, as a loaded one calls them."""
    try:
        found = _detected(header)
        if found is not None:
            processed: dict[str, Tensor] = found[0].process_clip_state_dict(dict(header.tensors()))
            return processed
    except Exception as error:  # the host's detection meets a file that it was not written for
        log.info("a checkpoint's text encoders could not be counted: %s", error)
        return {}
    own = header.tensors()
    # Alone in a file, an encoder has no name of its own: CLIP says text_model, all others count as one kind.
    front = ("clip_l" if any("text_model.encoder" in name for name in own) else "other") + ".transformer."
    return {f"{front}{name}": tensor for name, tensor in own.items()}
