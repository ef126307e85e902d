"""VAE of the host: pixels to latents and back; and CLIP_VISION, image embeddings."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..errors import AtelierError
from . import alterations
from .model import held
from .weights import identity_of, mended


class PictureCodec:
    """A loaded VAE."""

    def __init__(self, vae: Any):
        self.vae = vae
        mended(getattr(vae, "patcher", None))

    @property
    def device(self) -> torch.device:
        device: torch.device = self.vae.patcher.load_device
        return device

    @property
    def is_there(self) -> bool:
        """False for what a loader gives for a file without a VAE."""
        return getattr(self.vae, "first_stage_model", None) is not None

    @property
    def channels(self) -> int | None:
        """Channels of its latents; None for a VAE that doesn't say."""
        return getattr(self.vae, "latent_channels", None)

    @property
    def dimensions(self) -> int | None:
        """2 for pictures, 3 for films, 1 for sound; None for a VAE that doesn't say."""
        is_sound = getattr(self.vae, "extra_1d_channel", None) is not None or getattr(self.vae, "output_channels", 3) == 2
        return 1 if is_sound else getattr(self.vae, "latent_dim", None)

    @property
    def cell(self) -> int | None:
        """``downscale`` where the host says it reliably, which it doesn't for tiny autoencoders."""
        return None if type(self.vae.first_stage_model).__name__.startswith("TAE") else self.downscale

    @property
    def downscale(self) -> int:
        """Pixels a latent cell covers in each direction."""
        ratio = self.vae.downscale_ratio
        return int(ratio[-1]) if isinstance(ratio, (tuple, list)) else int(ratio)

    def identity(self) -> str:
        return identity_of(self.vae.first_stage_model, self.vae.patcher) + alterations.of_sampling(self.vae.patcher)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) in 0..1 -> latents on the CPU, unscaled (see ``Model.latents_in``).

        AtelierError while a model is held, if the host would have to put that model aside to make room.
        """
        if any(model.device == self.vae.patcher.load_device for model in held) and not self._fits_beside(pixels):
            raise AtelierError(
                "crop variants: there is too little memory for the VAE beside the model that is trained. Set it above 0, so that "
                "the pictures are encoded before the training."
            )
        with torch.inference_mode():
            latents: Tensor = self.vae.encode(pixels)
        with torch.inference_mode(False), torch.no_grad():
            return latents.detach().to("cpu", torch.float32, copy=True)

    def _fits_beside(self, pixels: Tensor) -> bool:
        """Whether the VAE can encode ``pixels`` while all other models stay where they are, by the host's own measure."""
        management, patcher = comfy.model_management, self.vae.patcher
        if management.is_device_cpu(patcher.load_device):
            return True
        if management.DISABLE_SMART_MEMORY:
            return False
        seen = pixels.movedim(-1, 1)
        if self.vae.latent_dim == 3:
            seen = seen.unsqueeze(2) if self.vae.not_video else seen.movedim(1, 0).unsqueeze(0)
        work = self.vae.memory_used_encode(seen.shape, self.vae.vae_dtype)
        work = max(management.minimum_inference_memory(), work + management.extra_reserved_memory())
        missing = patcher.model_size() - patcher.loaded_size()
        free: int = management.get_free_memory(patcher.load_device)
        return bool(free > 1.1 * missing + work)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, H, W, 3) in 0..1 on the CPU."""
        with torch.inference_mode():
            pixels: Tensor = self.vae.decode(latents).cpu()
        return pixels.reshape(-1, *pixels.shape[-3:])


class PictureReader:
    """A loaded CLIP_VISION: what it sees in a picture, as one direction."""

    def __init__(self, vision: Any):
        self.vision = vision
        mended(getattr(vision, "patcher", None))

    @property
    def name(self) -> str:
        return str(getattr(self.vision, "model_type", "")).replace("_model", "").replace("_", " ") or "vision"

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) in 0..1 -> (B, D), float32 on the CPU."""
        with torch.inference_mode():
            found = self.vision.encode_image(pixels)
            seen: Tensor | None = found["image_embeds"]
            if seen is None:
                states: Tensor = found["last_hidden_state"]
                seen = states.mean(dim=1)
            return seen.detach().float().cpu().flatten(1)
