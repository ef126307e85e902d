"""VAEs of video models with few channels and random weights, by the host's own classes and its own wrapper around them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Kernels keep a signal's size, norms are near 1, biases small."""
    stream, found = torch.Generator().manual_seed(5), {}
    for name, tensor in network.state_dict().items():
        noise = torch.randn(tensor.shape, generator=stream)
        one = name.endswith(("weight", "gamma")) and tensor.ndim != 1 and tensor.numel() > tensor.shape[0]
        norm = 1 + 0.1 * noise if name.endswith(("weight", "gamma", "std-of-means")) else 0.02 * noise
        found[name] = noise / math.sqrt(tensor[0].numel()) if one else norm
    return found


def wrapped(module: Any, name: str, narrow: Callable[[], nn.Module], **more: Any) -> Any:
    """The host's VAE of a narrow network; meanwhile the class ``name`` of ``module`` makes that one, since the host insists on
    the published widths."""
    import comfy.sd

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), ExitStack() as stack:
        stack.callback(logging.disable, logging.NOTSET)
        logging.disable(logging.WARNING)  # not all of it is there
        tensors = tensors_of(narrow())
        patch.setattr(module, name, lambda *_given, **_named: narrow())
        return comfy.sd.VAE(sd=tensors, **more)


def wan22() -> Any:
    """That of Wan 2.2 5B: four frames and 16 x 16 pixels in a cell, 48 channels."""
    from comfy.ldm.wan import vae2_2

    kind = vae2_2.WanVAE

    def narrow() -> nn.Module:
        return kind(
            dim=8, dec_dim=8, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )  # fmt: skip

    return wrapped(vae2_2, "WanVAE", narrow)


def ltx() -> Any:
    """That of LTX-Video: eight frames and 32 x 32 pixels in a cell, 128 channels. Its file says how wide it is."""
    import comfy.sd
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    blocks = [["res_x", 1], *[["compress_all", 1], ["res_x", 1]] * 3]
    config = {
        "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "blocks": blocks, "norm_layer": "pixel_norm",
        "patch_size": 4, "latent_log_var": "uniform", "causal_decoder": False, "encoder_base_channels": 16,
        "decoder_base_channels": 16,
    }  # fmt: skip
    with torch.inference_mode():
        return comfy.sd.VAE(sd=tensors_of(VideoVAE(config=config)), metadata={"config": json.dumps({"vae": config})})


def mochi() -> Any:
    """That of Mochi: six frames and 8 x 8 pixels in a cell, 12 channels."""
    from comfy.ldm.genmo.vae import model

    kind = model.VideoVAE

    class Narrow(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            shared: dict[str, Any] = {"num_res_blocks": [3, 1, 1, 1, 1], "latent_dim": 12, "padding_mode": "replicate"}
            few = [1, 2, 3, 4]
            self.encoder = model.Encoder(
                in_channels=15, base_channels=32, channel_multipliers=few, temporal_reductions=[1, 2, 3],
                spatial_reductions=[2, 2, 2], prune_bottlenecks=[False] * 5, has_attentions=[False, True, True, True, True],
                affine=True, bias=True, input_is_conv_1x1=True, **shared,
            )  # fmt: skip
            self.decoder = model.Decoder(
                out_channels=3, base_channels=32, channel_multipliers=few, temporal_expansions=[1, 2, 3],
                spatial_expansions=[2, 2, 2], has_attention=[False] * 5, output_norm=False, nonlinearity="silu",
                output_nonlinearity="silu", causal=True, **shared,
            )  # fmt: skip

    return wrapped(model, "VideoVAE", Narrow)
