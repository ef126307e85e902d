"""Text encoders of edit models that see the control pictures: which they are, and what each is shown, as by the host's nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.utils
from torch import Tensor

QWEN = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), then "
    "explain how the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate.<|im_end|>\n<|im_start|>user\n{}"
    "<|im_end|>\n<|im_start|>assistant\n"
)
"""The words around an instruction that Qwen-Image-Edit 2509 and 2511 were trained with (``TextEncodeQwenImageEditPlus``)."""
VISION = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Eyes:
    """What one kind of encoder is shown."""

    area: int = 384 * 384
    """Pixels to which a picture is brought; 0 leaves it as it comes."""
    long_edge: int = 0
    """Where it is not 0: pixels of the longer side, above which a picture is made smaller, in place of ``area``."""
    template: str = ""
    """The words around the text with a place for each picture; empty leaves it to the tokenizer."""
    most: int = 16
    """Pictures that the tokenizer has places for; the model is given the others' latents all the same."""

    def tokens(self, tokenizer: Any, text: str, pictures: Sequence[Tensor]) -> Any:
        """``pictures``: (1, H, W, 3) in 0..1 each."""
        named: dict[str, Any] = {}
        pictures = pictures[: self.most]
        if self.template:
            places = "".join(f"Picture {number}: {VISION}" for number in range(1, len(pictures) + 1))
            named["llama_template"] = self.template.replace("{}", places + "{}")
        return tokenizer.tokenize(text, images=[self._fitted(one) for one in pictures], **named)

    def _fitted(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[1:3]
        if not self.area:
            return pixels
        if self.long_edge:
            scale, how = min(1.0, self.long_edge / max(width, height)), "bicubic"
        else:
            scale, how = math.sqrt(self.area / (width * height)), "area"
        if scale == 1:
            return pixels
        size = max(1, round(width * scale)), max(1, round(height * scale))
        fitted: Tensor = comfy.utils.common_upscale(pixels.movedim(-1, 1), *size, how, "disabled").movedim(1, -1)
        return fitted


EYES = {
    "QwenImageTokenizer": Eyes(template=QWEN),
    "BooguTokenizer": Eyes(),
    "LongCatImageTokenizer": Eyes(area=512 * 512, most=1),
    "MageFlowTokenizer": Eyes(long_edge=384),
    "JoyImageTokenizer": Eyes(area=0),
}
"""By the name of the host's tokenizer. Others read the text alone, and the model is given the latents."""


def eyes_of(clip: Any) -> Eyes | None:
    """What a CLIP is shown of control pictures; None for one that sees none."""
    return EYES.get(type(getattr(clip, "tokenizer", None)).__name__)
