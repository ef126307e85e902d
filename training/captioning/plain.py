"""Models without a chat: they caption a picture, or go on with words that they are given.

GIT (Wang et al. 2022, arXiv 2205.14100), a picture encoder with a text decoder such as ViT-GPT2, PaliGemma (Beyer et al. 2024,
arXiv 2407.07726), Kosmos-2 (Peng et al. 2023, arXiv 2306.14824), InstructBLIP (Dai et al. 2023, arXiv 2305.06500). What they are
given when the prompt is empty is what their authors give them for a caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .pretrained import as_captions, fill_up_in_front, generate, load_pretrained, prepared, without_front
from .protocol import Check, Picture
from .settings import GenerationSettings

CONTINUE = ("git", "vision-encoder-decoder")
"""Kinds whose caption begins with the prompt, as BLIP's does; they caption without one."""
GIVEN: Mapping[str, str] = {
    "paligemma": "caption en",
    "kosmos-2": "An image of",
    "instructblip": "Write a short description for the image.",
    "fuyu": "Generate a coco-style caption.\n",
}
"""Kinds that are given words, and which these are for a caption."""
MODEL_TYPES = (*CONTINUE, *GIVEN)


class PlainCaptioner:
    """A loaded model that goes on where the prompt ends, for batches of pictures."""

    looks = True

    def __init__(self, folder: Path, kind: str, settings: GenerationSettings, device: torch.device, check: Check) -> None:
        # GIT and ViT-GPT2 are small, and halves would only blur them.
        self.dtype = torch.bfloat16 if device.type == "cuda" and kind not in CONTINUE else torch.float32
        self.processor, self.model = load_pretrained(folder, device, self.dtype)
        self.kind, self.settings, self.device, self.check = kind, settings, device, check
        if kind not in CONTINUE:
            fill_up_in_front(self.processor)

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        images, prompt = [picture.image for picture in pictures], self.settings.prompt.strip()
        if self.kind in CONTINUE:
            inputs = prepared(self.processor.image_processor, pictures, self.device, self.dtype, images=images)
            if prompt:
                name = "input_ids" if self.kind == "git" else "decoder_input_ids"
                inputs[name] = torch.tensor([self._begun(prompt)] * len(images), device=self.device)
            tokens = generate(self.model, inputs, self.settings, self.check)
            return as_captions(self.processor, tokens, self.model)
        text = prompt or GIVEN[self.kind]
        if self.kind == "paligemma" and self.processor.image_token not in text:
            text = f"{self.processor.image_token}{text}"
        call = {"images": images, "text": [text] * len(images), "padding": True}
        inputs = prepared(self.processor, pictures, self.device, self.dtype, **call)
        tokens = without_front(generate(self.model, inputs, self.settings, self.check), inputs)
        return as_captions(self.processor, tokens, self.model)

    def _begun(self, prompt: str) -> list[int]:
        """The tokens that a caption begins with; a decoder beside an encoder gets its own first one while generating."""
        tokenizer = self.processor.tokenizer
        words: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return [tokenizer.cls_token_id, *words] if self.kind == "git" else words
