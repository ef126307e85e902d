"""Cell renderer: samples cells alone, in batches of several strengths, or with the host's merged weights."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from .. import compatibility, host
from ..config.sampling import Sampling
from ..dataset.images import to_picture
from ..protocols import CanvasText
from .lora import Lora, join
from .plan import Page


class CellRenderer:
    """Model, text encoder and VAE with one person's sampler settings."""

    def __init__(self, model: host.Model, text: host.TextEncoder, codec: host.PictureCodec, sampling: Sampling):
        self.model, self.text, self.codec, self.sampling = model, text, codec, sampling
        self._encoded: dict[str, CanvasText] = {}

    @property
    def latent_size(self) -> tuple[int, int]:
        cell = self.codec.downscale
        return self.sampling.height // cell, self.sampling.width // cell

    def remarks(self) -> list[str]:
        """Where a cell is not of the size that was asked for."""
        asked, cell = (self.sampling.width, self.sampling.height), self.codec.downscale
        drawn = tuple(side // cell * cell for side in asked)
        if drawn == asked:
            return []
        return [
            f"width, height: {asked[0]} x {asked[1]} is drawn at {drawn[0]} x {drawn[1]}, since this model's pictures consist of "
            f"squares of {cell} pixels."
        ]

    def check(self) -> None:
        """AtelierError if the model cannot read what the text encoder gives."""
        compatibility.check_conditioning(self.model, self._encode(self.sampling.negative))

    def plain(self, page: Page) -> Image.Image:
        """A cell without any LoRA."""
        positive, negative = self._encode(page.prompt), self._encode(self.sampling.negative)
        return self._pictures(self._alone(self.model, positive, negative, page.seed), 1)[0]

    def merged(self, model: host.Model, text: host.TextEncoder, page: Page) -> Image.Image:
        """A cell with what the host made of model and text encoder."""
        positive, negative = text.for_sampling(page.prompt), text.for_sampling(self.sampling.negative)
        return self._pictures(self._alone(model, positive, negative, page.seed), 1)[0]

    def beside(self, lora: Lora, page: Page, strengths: Sequence[float], text_strengths: Sequence[float]) -> list[Image.Image]:
        """Cells of one LoRA at several strengths, in one batch if their conditionings can share one."""
        conditions = [self._conditions(lora, page, strength) for strength in text_strengths]
        positive, negative = join([c[0] for c in conditions]), join([c[1] for c in conditions])
        if positive is None or negative is None:
            return [
                picture
                for one, text in zip(strengths, text_strengths, strict=True)
                for picture in self.beside(lora, page, [one], [text])
            ]
        with lora.attached(strengths) as rows:
            if len(strengths) == 1:
                latents = self._alone(self.model, positive, negative, page.seed)
            else:
                shared = positive is conditions[0][0] and negative is conditions[0][1]
                latents = self.model.sample_together(
                    positive, negative, self.sampling.settings, len(strengths), rows.choose, latent_size=self.latent_size,
                    seed=page.seed, whole=not shared,
                )  # fmt: skip
        return self._pictures(latents, len(strengths))

    def _conditions(self, lora: Lora, page: Page, strength: float) -> tuple[CanvasText, CanvasText]:
        texts = page.prompt, self.sampling.negative
        if lora.reads_text and strength:
            return lora.encode(texts[0], strength), lora.encode(texts[1], strength)
        return self._encode(texts[0]), self._encode(texts[1])

    def _encode(self, text: str) -> CanvasText:
        """A prompt is encoded once, unless a LoRA has a part in the text encoder."""
        if text not in self._encoded:
            self._encoded[text] = self.text.for_sampling(text)
        return self._encoded[text]

    def _alone(self, model: host.Model, positive: CanvasText, negative: CanvasText, seed: int) -> Tensor:
        return model.sample(positive, negative, self.sampling.settings, latent_size=self.latent_size, seed=seed)

    def _pictures(self, latents: Tensor, count: int) -> list[Image.Image]:
        """NotFinite when the model or the VAE gives something that is no picture."""
        pixels = self.codec.decode(latents)
        compatibility.check_picture(self.model, latents, pixels)
        return [to_picture(one) for one in pixels[:: max(1, len(pixels) // count)]]
