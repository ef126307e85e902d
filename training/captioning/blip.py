"""BLIP (Li et al. 2022, arXiv 2201.12086) and BLIP-2 (Li et al. 2023, arXiv 2301.12597)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .pretrained import as_captions, generate, load_pretrained, prepared
from .protocol import Check, Picture
from .settings import GenerationSettings

MODEL_TYPES = ("blip", "blip-2")


class BlipCaptioner:
    """A loaded model that continues one prompt for batches of pictures."""

    looks = True

    def __init__(self, folder: Path, kind: str, settings: GenerationSettings, device: torch.device, check: Check) -> None:
        # BLIP-2 has billions of weights, and half precision is what it was published for; on a CPU halves are slow.
        self.dtype = torch.float16 if device.type == "cuda" and kind == "blip-2" else torch.float32
        self.processor, self.model = load_pretrained(folder, device, self.dtype)
        self.settings, self.device, self.check = settings, device, check
        self.needs_text = kind == "blip-2"

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        prompt = self.settings.prompt.strip()
        call = {"text": [prompt] * len(pictures)} if prompt or self.needs_text else {}
        images = [picture.image for picture in pictures]
        inputs = prepared(self.processor, pictures, self.device, self.dtype, images=images, **call)
        tokens = generate(self.model, inputs, self.settings, self.check)
        return as_captions(self.processor, tokens)
