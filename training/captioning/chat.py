"""Vision-language chat models of the Qwen-VL class.

Qwen2-VL: Wang et al. 2024, arXiv 2409.12191; Qwen2.5-VL: arXiv 2502.13923; Qwen3-VL: arXiv 2511.21631.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..errors import AtelierError
from .pretrained import as_captions, generate, load_pretrained, prepared
from .protocol import Check, Picture
from .settings import GenerationSettings

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
QUESTION = "Describe this picture in one sentence for somebody who cannot see it. Answer with the description only."
"""What is asked when the prompt is empty."""
MAX_PIXELS = 1280 * 28 * 28
"""A picture becomes one token for each 28 x 28 pixels (32 x 32 in Qwen3-VL), and 1280 are the authors' advice for a limit."""


class ChatCaptioner:
    """A loaded model that answers one question about each picture."""

    looks = True

    def __init__(self, folder: Path, settings: GenerationSettings, device: torch.device, check: Check) -> None:
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.processor, self.model = load_pretrained(folder, device, self.dtype)
        if not getattr(self.processor, "chat_template", None):
            raise AtelierError(
                f"captioner: {folder.name} has no chat template. Put the model's chat_template.jinja (or .json) into {folder}."
            )
        # An answer begins where the question ends, so shorter questions are filled up in front.
        self.processor.tokenizer.padding_side = "left"
        self.settings, self.device, self.check = settings, device, check

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        question = self.settings.prompt.strip() or QUESTION
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = [within(picture.image, MAX_PIXELS) for picture in pictures]
        call = {"images": images, "text": [text] * len(images), "padding": True}
        inputs = prepared(self.processor, pictures, self.device, self.dtype, **call)
        tokens = generate(self.model, inputs, self.settings, self.check)
        return as_captions(self.processor, tokens[:, inputs["input_ids"].shape[1] :])


def within(image: Image.Image, pixels: int) -> Image.Image:
    """The picture, shrunk in proportion if it has more pixels."""
    scale = (pixels / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.LANCZOS)
