"""VAE of the host: pixels to latents and back; and CLIP_VISION, image embeddings."""

from __future__ import annotations

import copy
import logging
from typing import Any, NoReturn

import comfy.model_management
import torch
from torch import Tensor

from ..errors import AtelierError, is_out_of_memory
from . import alterations
from .holding import held
from .weights import identity_of, mended

log = logging.getLogger("lora-atelier")
TILED = ("encode_tiled_", "encode_tiled_1d", "encode_tiled_3d", "_encode_tiled_owned")
"""What the host's VAE calls where it has run out of memory."""


class _TooMany(Exception):
    """There is no memory for so many pictures at once."""


class PictureCodec:
    """A loaded VAE."""

    def __init__(self, vae: Any):
        self.vae = vae
        self._most: int | None = None
        """Pixels of which there was once no memory for twice as many."""
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

    def frames_into(self, frames: int) -> int:
        """Frames of the latent that a film of so many frames has."""
        return int(self._over_time(self.vae.downscale_ratio, frames))

    def frames_out(self, latent_frames: int) -> int:
        """Frames of the film that a latent of so many frames gives."""
        return int(self._over_time(self.vae.upscale_ratio, latent_frames))

    @staticmethod
    def _over_time(ratio: Any, frames: int) -> float:
        """The host states how time is packed as a function; a VAE that states none has a frame for each."""
        packed: float = ratio[0](frames) if isinstance(ratio, (tuple, list)) and callable(ratio[0]) else frames
        return packed

    def identity(self) -> str:
        return identity_of(self.vae.first_stage_model, self.vae.patcher) + alterations.of_sampling(self.vae.patcher)

    def at_once(self, width: int, height: int) -> int:
        """How many pictures of a size can be encoded together while all models stay where they are, by the host's own measure.

        At least 1, for which the host makes room, and never more than went well.
        """
        if self._on_cpu:
            return 1
        patcher = self.vae.patcher
        # Hosts that page weights in count those that can go as free: a larger batch is worth more to them.
        free = getattr(patcher, "get_free_memory", comfy.model_management.get_free_memory)(patcher.load_device)
        room = int((free - self._missing()) // max(1, self._work(width, height)))
        return max(1, min(room, self._most // (width * height)) if self._most is not None else room)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) in 0..1, wherever they are -> latents on the CPU, one for each, unscaled (see ``Model.latents_in``).

        In the number format that the host has chosen for its VAE. Where there is no memory for all of them fewer go together, and
        a single picture in tiles, as the host does it. AtelierError while a model is held, if the host would have to put that
        model aside to make room.
        """
        if any(model.device == self.vae.patcher.load_device for model in held) and not self._fits_beside(pixels):
            raise AtelierError(
                "crop variants: there is too little memory for the VAE beside the model that is trained. Set it above 0, so that "
                "the pictures are encoded before the training."
            )
        with torch.inference_mode():
            latents = self._encode(pixels)
        with torch.inference_mode(False), torch.no_grad():
            return latents.detach().to("cpu", torch.float32, copy=True)

    def encode_film(self, pixels: Tensor) -> Tensor:
        """(T, H, W, 3) in 0..1, the frames of one film -> its latent (1, C, t, h, w) on the CPU, unscaled.

        AtelierError as in ``encode``.
        """
        if any(model.device == self.vae.patcher.load_device for model in held) and not self._fits_beside(pixels, len(pixels)):
            raise AtelierError(
                "crop variants: there is too little memory for the VAE beside the model that is trained. Set it above 0, so that "
                "the films are encoded before the training."
            )
        with torch.inference_mode():
            latent: Tensor = self.vae.encode(pixels)
        with torch.inference_mode(False), torch.no_grad():
            return latent.detach().to("cpu", torch.float32, copy=True)

    def nearest_frames(self, frames: int) -> tuple[int, ...]:
        """``frames`` alone where the VAE encodes all of so many; else the nearest numbers of which it does.

        By what the host says of how many frames a latent has, and of how many frames are made of it.
        """
        down, up = (getattr(self.vae, name, None) for name in ("downscale_ratio", "upscale_ratio"))
        fewer, more = (ratio[0] if isinstance(ratio, (tuple, list)) else None for ratio in (down, up))
        if not callable(fewer) or not callable(more):
            return (frames,)
        cells = int(fewer(frames))
        if int(more(cells)) == frames:
            return (frames,)
        return tuple(n for n in (int(more(at)) for at in range(max(0, cells - 1), cells + 2)) if n >= 1)

    @property
    def takes_films(self) -> bool:
        """Whether several frames become one latent."""
        return self._takes_films

    def _encode(self, pixels: Tensor) -> Tensor:
        if len(pixels) == 1:
            alone: Tensor = self.vae.encode(pixels)
            return alone
        if self._takes_films and (self._on_cpu or not hasattr(self.vae, "vae_encode_crop_pixels")):
            # A CPU gains nothing by several at once, and a VAE of another kind than the host's may take no films ready made.
            return torch.cat([self._encode(one[None]) for one in pixels])
        together = self._encode_together(pixels)
        if together is not None:
            return together
        half = len(pixels) // 2
        self._most = half * pixels.shape[1] * pixels.shape[2]
        log.info("VAE: there is no memory for %d pictures at once; %d go together.", len(pixels), half)
        comfy.model_management.soft_empty_cache()
        return torch.cat([self._encode(pixels[:half]), self._encode(pixels[half:])])

    def _encode_together(self, pixels: Tensor) -> Tensor | None:
        """None where there is no memory for them all: what is tried next waits until the error, and what it holds, is gone."""
        vae = copy.copy(self.vae)
        for name in TILED:
            if hasattr(vae, name):
                setattr(vae, name, _refuse_tiles)
        if self._takes_films:  # pictures would be the frames of one film; so each is a film of one frame
            pixels = vae.vae_encode_crop_pixels(pixels).unsqueeze(1)
            vae.crop_input = False
        try:
            latents: Tensor = vae.encode(pixels)
        except _TooMany:
            return None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None
        return latents

    @property
    def _on_cpu(self) -> bool:
        return bool(comfy.model_management.is_device_cpu(self.vae.patcher.load_device))

    @property
    def _takes_films(self) -> bool:
        return self.dimensions == 3 and not getattr(self.vae, "not_video", False)

    def _work(self, width: int, height: int, frames: int = 1) -> float:
        """Bytes that the VAE takes to encode one picture, or one film, by the host's own measure."""
        shape = (1, 3, frames, height, width) if self.dimensions == 3 else (1, 3, height, width)
        return float(self.vae.memory_used_encode(shape, self.vae.vae_dtype))

    def needed_to_decode(self, latent_size: tuple[int, ...]) -> int:
        """Bytes that it takes on its device with its weights to decode so many cells: (height, width), or (frames, height, width)
        of a film."""
        alone = self.dimensions == 3 and len(latent_size) == 2
        shape = (1, self.channels or 4, *([1] if alone else []), *latent_size)
        work = float(self.vae.memory_used_decode(shape, self.vae.vae_dtype))
        return int(1.1 * float(self.vae.patcher.model_size()) + work)

    def _missing(self) -> float:
        """Bytes that what is not yet loaded of the VAE will take."""
        return 1.1 * float(self.vae.patcher.model_size() - self.vae.patcher.loaded_size())

    def _fits_beside(self, pixels: Tensor, frames: int = 1) -> bool:
        """Whether the VAE can encode ``pixels`` while all other models stay where they are, by the host's own measure."""
        management = comfy.model_management
        if self._on_cpu:
            return True
        if management.DISABLE_SMART_MEMORY:
            return False
        work = self._work(pixels.shape[2], pixels.shape[1], frames) + management.extra_reserved_memory()
        needed: float = max(management.minimum_inference_memory(), work)
        free: int = management.get_free_memory(self.vae.patcher.load_device)
        return free > self._missing() + needed

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, H, W, 3) in 0..1 on the CPU."""
        with torch.inference_mode():
            pixels: Tensor = self.vae.decode(latents).cpu()
        return pixels.reshape(-1, *pixels.shape[-3:])


def _refuse_tiles(*_arguments: Any, **_named: Any) -> NoReturn:
    """Stands where the host would go on in tiles, whose seams several pictures needn't have that fit alone."""
    raise _TooMany


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
