"""Florence-2 (Xiao et al. 2023, arXiv 2311.06242), as ``transformers`` itself has it.

The model was first published with Python code beside its weights. That form is refused; the same weights exist in the form
that needs no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import AtelierError
from .config_file import config_of
from .pretrained import as_captions, generate, load_pretrained, prepared
from .protocol import Check, Picture
from .settings import GenerationSettings

MODEL_TYPES = ("florence2",)
TASK = "<DETAILED_CAPTION>"
"""What is asked when the prompt is empty."""
NOT_TEXT = (
    "<OD>", "<OCR_WITH_REGION>", "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<CAPTION_TO_PHRASE_GROUNDING>",
    "<REFERRING_EXPRESSION_SEGMENTATION>", "<REGION_TO_SEGMENTATION>", "<OPEN_VOCABULARY_DETECTION>",
)  # fmt: skip
"""Tasks whose answers are places in the picture."""


class FlorenceCaptioner:
    """A loaded model that does one task for batches of pictures."""

    looks = True

    def __init__(self, folder: Path, settings: GenerationSettings, device: torch.device, check: Check) -> None:
        self.task = settings.prompt.strip() or TASK
        if any(task in self.task for task in NOT_TEXT):
            raise AtelierError(
                f"prompt: {self.task} finds places and writes no caption; use <CAPTION>, <DETAILED_CAPTION> or "
                "<MORE_DETAILED_CAPTION>."
            )
        _refuse_own_code(folder)
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.processor, self.model = load_pretrained(folder, device, self.dtype)
        self.settings, self.device, self.check = settings, device, check

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        images, text = [picture.image for picture in pictures], [self.task] * len(pictures)
        inputs = prepared(self.processor, pictures, self.device, self.dtype, images=images, text=text)
        tokens = generate(self.model, inputs, self.settings, self.check)
        return as_captions(self.processor, tokens)


def _refuse_own_code(folder: Path) -> None:
    vision = config_of(folder).get("vision_config")
    if isinstance(vision, dict) and vision.get("model_type") == "davit":
        raise AtelierError(
            f"captioner: {folder.name} is Florence-2 in the form that brings its own program code, which is never run here. Take "
            "the form for transformers, such as florence-community/Florence-2-base."
        )
