"""What a model file holds, told by its header alone."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..header import Header
from .model import Model

log = logging.getLogger("lora-atelier")


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


def outline(header: Header) -> tuple[Model, int] | None:
    """The model in a file as layers without any weights, for counting, and the bytes that its weights will take where it works.

    None if the host cannot make one.
    """
    try:
        found = _detected(header)
        if found is None:
            return None
        config, tensors, prefix = found
        config.set_inference_dtype(torch.float16, None)
        empty = config.get_model(tensors, prefix, device="meta")
        numbers = sum(p.numel() for p in empty.diffusion_model.parameters())
        stored = comfy.utils.weight_dtype(tensors, prefix)
        kept = comfy.model_management.unet_dtype(None, numbers, list(config.supported_inference_dtypes), stored)
        return Model(SimpleNamespace(model=empty, model_options={}, object_patches={})), numbers * kept.itemsize
    except Exception as error:  # many families, many ways to ask for what a header does not hold
        log.info("a model's layers could not be counted: %s", error)
        return None
