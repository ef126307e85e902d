"""BLIP (Li et al. 2022, arXiv 2201.12086) and BLIP-2 (Li et al. 2023, arXiv 2301.12597) through ``transformers``.

Everything comes from a folder on this computer: nothing is downloaded, no code from the folder is run, and only safetensors
weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import AtelierError
from .protocol import Picture
from .settings import GenerationSettings

MODEL_TYPES = ("blip", "blip-2")


class BlipCaptioner:
    """A loaded model that answers one prompt for batches of pictures."""

    def __init__(self, folder: Path, settings: GenerationSettings, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.settings = settings
        try:
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:
            # transformers raises many kinds of error for a folder that is incomplete or damaged.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AtelierError(
                f"captioner: {folder.name} cannot be loaded ({reason}). "
                "Download all files of the model again: config, tokenizer, preprocessor and safetensors weights."
            ) from error
        # BLIP-2 has billions of weights, and half precision is what it was published for; on a CPU halves are slow.
        dtype = torch.float16 if device.type == "cuda" and model.config.model_type == "blip-2" else torch.float32
        self.model = model.to(device=device, dtype=dtype).eval()
        self.device, self.dtype = device, dtype

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        settings, prompt = self.settings, self.settings.prompt.strip()
        images = [picture.image for picture in pictures]
        text = {"text": [prompt] * len(images)} if prompt or self.model.config.model_type == "blip-2" else {}
        inputs = self.processor(images=images, return_tensors="pt", **text).to(self.device, self.dtype)
        with torch.no_grad():
            tokens = self.model.generate(
                **inputs,
                num_beams=settings.beams,
                min_new_tokens=settings.min_length,
                max_new_tokens=settings.max_length,
                do_sample=False,
            )
        return [" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
