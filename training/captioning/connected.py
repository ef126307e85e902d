"""Captioner of the connected text encoder, where it is a vision-language model and the host can let it generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .chat import MAX_PIXELS, QUESTION, within
from .protocol import Picture
from .settings import GenerationSettings
from .thoughts import THINKING, still_thinking, without_thoughts


class Writer(Protocol):
    """What answers a question about a picture."""

    def write(self, pixels: Tensor, question: str, max_length: int) -> str:
        """The answer, of at most ``max_length`` tokens, about ``pixels`` (1, H, W, 3) in 0..1."""
        ...


class ConnectedCaptioner:
    """One question to the connected model about each picture, the most probable word each time."""

    looks = True

    def __init__(self, writer: Writer, settings: GenerationSettings) -> None:
        self.writer, self.settings = writer, settings
        self.silence = ""

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        question = self.settings.prompt.strip() or QUESTION
        said = [self.writer.write(_pixels(picture), question, self.settings.max_length) for picture in pictures]
        self.silence = THINKING if any(map(still_thinking, said)) else self.silence
        return [without_thoughts(text) for text in said]


def _pixels(picture: Picture) -> Tensor:
    return torch.from_numpy(np.asarray(within(picture.image, MAX_PIXELS), np.float32) / 255)[None]
