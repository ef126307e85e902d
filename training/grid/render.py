"""The cells of an epoch x strength grid: each one sampled once, saved at once, and found again the next time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from torch import Tensor

from .. import host
from ..dataset.cache import cache_key
from ..errors import AtelierError
from ..files import replacing
from ..network import keys
from ..network.attach import Adapter
from ..network.parts import Layers, Names, every_layer, reads_text
from ..run import SavedLoRA
from .picture import Cell, Failed, compose
from .plan import Epochs

log = logging.getLogger("lora-atelier")


@dataclass(frozen=True)
class Sampling:
    """The person's own sampler settings; every cell uses the same ones, the seed included."""

    negative: str
    sampler: str
    scheduler: str
    steps: int
    cfg: float
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class Axes:
    """What varies: a page a prompt, a column an epoch (the first without any LoRA), a row a strength."""

    prompts: tuple[str, ...]
    files: tuple[SavedLoRA, ...]
    strengths: tuple[float, ...]

    @property
    def cells(self) -> int:
        """Pictures to sample: the control is sampled once a prompt and shown in every row."""
        return len(self.prompts) * (1 + len(self.files) * len(self.strengths))


class Grid:
    """Renders the pages of one grid into ``folder``."""

    def __init__(
        self,
        model: host.Model,
        text: host.TextEncoder,
        codec: host.PictureCodec,
        epochs: Epochs,
        axes: Axes,
        sampling: Sampling,
        folder: Path,
        graph: Mapping[str, Any],
    ):
        self.model, self.text, self.codec = model, text, codec
        self.epochs, self.axes, self.sampling, self.folder, self.graph = epochs, axes, sampling, folder, graph
        self.pages: list[list[list[Cell]]] = [
            [[None] * (1 + len(axes.files)) for _ in axes.strengths] for _ in axes.prompts
        ]  # fmt: skip
        self._loaded: tuple[Path, Adapter] | None = None
        self._encoded: dict[str, list] = {}
        self._layers, self._names = every_layer(model, text)
        self._base = cache_key(model.identity(), text.identity(), codec.identity(), asdict(sampling))

    def render(self, advance: Callable[..., None]) -> None:
        """Fills every page; ``advance(cells done, page so far)`` may raise to cancel, and what is done stays on disk.

        Epochs are the outermost axis, because a new LoRA file costs more than a new prompt or strength.
        """
        done = 0
        for column, file in enumerate([None, *self.axes.files]):
            for page, prompt in enumerate(self.axes.prompts):
                for row, strength in enumerate(self.axes.strengths if file else self.axes.strengths[:1]):
                    cell = self._cell(file, strength, prompt)
                    for y in [row] if file else range(len(self.axes.strengths)):
                        self.pages[page][y][column] = cell
                    done += 1
                    advance(done, self.page(page))

    def page(self, index: int) -> Image.Image:
        """The page of one prompt as far as it has been rendered."""
        s = self.sampling
        subtitle = f"{self.axes.prompts[index]}   ·   {s.sampler} / {s.scheduler}, {s.steps} steps, cfg {s.cfg:g}, seed {s.seed}"
        columns = ["no LoRA", *(f.label for f in self.axes.files)]
        rows = [f"{strength:g}" for strength in self.axes.strengths]
        title = f"{self.epochs.name}   on {self.model.family}"
        size = (s.width, s.height)
        return compose(self.pages[index], columns, rows, title=title, subtitle=subtitle, cell_size=size)

    def save_pages(self) -> list[Path]:
        """Writes every page as PNG, with metadata from which the axes can be restored."""
        out = []
        for index, prompt in enumerate(self.axes.prompts):
            axes = {
                "prompt": prompt,
                "epochs": [{"file": host.lora_name(f.path), "epoch": f.epoch, "step": f.step} for f in self.axes.files],
                "strengths": self.axes.strengths,
                **asdict(self.sampling),
            }
            name = cache_key(self._base, axes)[:12]
            path = self.folder / f"grid-{name}.png"
            with replacing(path) as temporary:
                self.page(index).save(temporary, format="PNG", pnginfo=self._info({"lora_atelier.grid": json.dumps(axes)}))
            out.append(path)
        return out

    def _cell(self, file: SavedLoRA | None, strength: float, prompt: str) -> Cell:
        key = cache_key(self._base, content_key(file.path) if file else "", strength if file else 0, prompt)
        path = self.folder / "cells" / f"{key[:24]}.png"
        if path.is_file():
            with Image.open(path) as known:
                return known.convert("RGB")
        try:
            with self._beside(file, strength) as adapter:
                positive, negative = (self._conditioning(text, adapter) for text in (prompt, self.sampling.negative))
                picture = to_picture(self._sample(positive, negative))
        except Exception as error:  # one bad cell must not cost the others; a cancel is re-raised
            if host.is_interrupt(error):
                raise
            log.exception("grid cell failed: %s at %s", file, strength)
            return Failed(f"{type(error).__name__}: {error}")
        facts = {
            "prompt_text": prompt, "lora": host.lora_name(file.path) if file else None, "epoch": file.epoch if file else None,
            "lora_content": content_key(file.path) if file else None, "strength": strength if file else 0,
            **asdict(self.sampling),
        }  # fmt: skip
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=self._info({"lora_atelier.cell": json.dumps(facts)}))
        return picture

    def _beside(self, file: SavedLoRA | None, strength: float) -> AbstractContextManager[Adapter | None]:
        if file is None:
            return nullcontext()
        if self._loaded is None or self._loaded[0] != file.path:
            self._loaded = (file.path, load_adapter(file.path, self.model, self._layers, self._names).to(self.model.device))
        adapter = self._loaded[1]
        adapter.strength = strength
        return adapter.attached(self._layers)

    def _conditioning(self, text: str, adapter: Adapter | None) -> list:
        """A prompt is encoded once, unless the LoRA has a part in the text encoder."""
        if adapter is not None and reads_text(adapter):
            return self.text.for_sampling(text)
        if text not in self._encoded:
            self._encoded[text] = self.text.for_sampling(text)
        return self._encoded[text]

    def _sample(self, positive: list, negative: list) -> Tensor:
        s, cell = self.sampling, self.codec.downscale
        latent = self.model.sample(
            positive, negative, latent_size=(s.height // cell, s.width // cell), steps=s.steps, cfg=s.cfg,
            sampler=s.sampler, scheduler=s.scheduler, seed=s.seed,
        )  # fmt: skip
        return self.codec.decode(latent)[0]

    def _info(self, facts: Mapping[str, str]) -> PngInfo:
        info = PngInfo()
        for name, text in {**self.graph, **facts}.items():
            info.add_text(name, text)
        return info


def load_adapter(path: Path, model: host.Model, layers: Layers, names: Names) -> Adapter:
    """A LoRA file as an adapter beside ``every_layer``; AtelierError when it belongs to another model."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    try:
        return keys.from_file(tensors, layers, names)
    except ValueError as error:
        raise AtelierError(f"{path.name}: {error} ({model.family}).") from error


def content_key(path: Path) -> str:
    """The hash that the file's metadata states, or one of its own bytes."""
    with safe_open(path, framework="pt") as file:
        stated = (file.metadata() or {}).get("sshs_model_hash")
    if stated:
        return stated
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def to_picture(pixels: Tensor) -> Image.Image:
    """(H, W, 3) in 0..1 -> an 8-bit picture, rounded as the stock SaveImage does."""
    return Image.fromarray(np.clip(255.0 * pixels.float().cpu().numpy(), 0, 255).astype(np.uint8))


def to_batch(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of possibly different sizes -> (B, H, W, 3) in 0..1, padded with white at the right and the bottom."""
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)

    def pages() -> Iterator[Tensor]:
        for picture in pictures:
            sheet = Image.new("RGB", (width, height), "white")
            sheet.paste(picture)
            yield torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)

    return torch.stack(list(pages()))
