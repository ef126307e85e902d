"""WD taggers: ONNX models that give every tag of a list a probability.

What such a folder holds, and how a picture enters the model, is the convention of its author's published demonstration
(SmilingWolf, wd-tagger): ``selected_tags.csv`` names the outputs in order, category 0 is a general tag, 4 a character, 9 a
rating; the picture is centred on a white square, scaled bicubically to the model's own size, and given as blue, green, red from
0 to 255.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..dataset.words import joined
from ..errors import AtelierError, counted
from ..files import read_limited
from .protocol import Picture
from .settings import TaggerSettings
from .text import without

TAG_LIST = "selected_tags.csv"
LARGEST = 64 * 2**20
"""Bytes of such a list."""
GENERAL, CHARACTER, RATING = 0, 4, 9


class Tagger:
    """A loaded tagger; its captions are tags between commas: rating, characters, then the others, the most probable first."""

    looks = True
    silence = "No tag is as probable as the thresholds ask; lower general_threshold or character_threshold."

    def __init__(self, folder: Path, settings: TaggerSettings, device: torch.device) -> None:
        path = model_file(folder)
        self.tags = read_tags(folder / TAG_LIST)
        self.session = _session(path, device)
        self.name, self.settings = folder.name, settings
        entry, answer = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self.entry, self.answer = entry.name, answer.name
        self.size, self.at_once = _square(entry.shape, path)
        if isinstance(answer.shape[-1], int) and answer.shape[-1] != len(self.tags):
            raise AtelierError(
                f"captioner: {folder.name}'s {TAG_LIST} lists {counted(len(self.tags), 'tag')}, but {path.name} answers for "
                f"{answer.shape[-1]}. Take both files from the same download."
            )

    def probabilities(self, pictures: Sequence[Picture]) -> np.ndarray:
        """(pictures, tags), between 0 and 1."""
        pixels = np.stack([as_input(picture.image, self.size) for picture in pictures])
        step = self.at_once or len(pixels)
        rows = [
            self.session.run([self.answer], {self.entry: pixels[i : i + step]})[0] for i in range(0, len(pixels), step)
        ]  # fmt: skip
        values = np.concatenate(rows).astype(np.float64)
        if values.shape[1:] != (len(self.tags),) or not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):  # also for NaN
            raise AtelierError(f"captioner: {self.name} answers in a way that no WD tagger does. Choose another captioner.")
        return values

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        return [joined(chosen(row, self.tags, self.settings)) for row in self.probabilities(pictures)]


def chosen(row: np.ndarray, tags: Sequence[tuple[str, int]], settings: TaggerSettings) -> list[str]:
    """The tags of one picture: ``row`` holds a probability for every (name, category) of ``tags``."""
    ranked = sorted(((float(value), name, kind) for value, (name, kind) in zip(row, tags, strict=True)), key=lambda t: -t[0])
    ratings = [name for _, name, kind in ranked if kind == RATING][: 1 if settings.rating else 0]
    characters = [name for value, name, kind in ranked if kind == CHARACTER and value >= settings.character]
    general = [name for value, name, kind in ranked if kind == GENERAL and value >= settings.general]
    return [tag for tag in ratings + characters + general if without(tag, settings.blacklist)]


def as_input(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) float32 from 0 to 255 in the order blue, green, red; the picture in the middle of a white square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    scaled = square if side == size else square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(scaled, np.float32)[:, :, ::-1]


def model_file(folder: Path) -> Path:
    """The folder's ONNX model: ``model.onnx``, or the only one there is."""
    found = sorted(folder.glob("*.onnx"))
    named = [path for path in found if path.name == "model.onnx"]
    if len(found) != 1 and not named:
        raise AtelierError(f"captioner: {folder.name} has {len(found)} ONNX files. Name the one to use model.onnx.")
    return named[0] if named else found[0]


def read_tags(path: Path) -> list[tuple[str, int]]:
    """(name, category) of every output, in order; AtelierError naming the file if it cannot be read."""
    try:
        file = io.StringIO(read_limited(path, LARGEST).decode("utf-8-sig"), newline="")
        tags = [(" ".join(row["name"].split()), int(row["category"])) for row in csv.DictReader(file)]
    except FileNotFoundError as error:
        raise AtelierError(f"captioner: there is no {path}. Put it there from the download of the tagger.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise AtelierError(
            f"captioner: {path} cannot be read: a table with the columns name and category is expected. Download it again."
        ) from error
    if not tags:
        raise AtelierError(f"captioner: {path} lists no tags. Download it again.")
    return tags


def _session(path: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise AtelierError(
            f"captioner: {path.parent.name} is a tagger in ONNX form, which needs the Python package onnxruntime. Install it "
            "into ComfyUI's Python (pip install onnxruntime) and restart ComfyUI, or choose another captioner."
        ) from error
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    available = onnxruntime.get_available_providers()
    try:
        providers = [provider for provider in [*wanted, "CPUExecutionProvider"] if provider in available]
        return onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:
        # onnxruntime raises errors of many kinds that share no class but this.
        raise AtelierError(f"captioner: {path} cannot be loaded as an ONNX model. Download it again.") from error


def _square(shape: Sequence[object], path: Path) -> tuple[int, int]:
    """(side in pixels, pictures at a time or 0 for any number) from the shape (batch, height, width, 3)."""
    if len(shape) == 4 and shape[3] == 3 and isinstance(shape[1], int) and shape[1] == shape[2]:
        return shape[1], shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0
    raise AtelierError(
        f"captioner: {path} takes pictures in the shape {list(shape)}; a WD tagger takes [batch, size, size, 3]. Choose another."
    )
