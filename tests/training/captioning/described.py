"""Captions through real loading and real generation, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lora_atelier.training.captioning import load
from lora_atelier.training.captioning.protocol import Picture
from lora_atelier.training.captioning.settings import GenerationSettings

CPU = torch.device("cpu")


def described(captioners: Path, name: str, paths: Sequence[Path], **settings: Any) -> Sequence[str]:
    return load(name, captioners, "", GenerationSettings(**settings), CPU).caption([Picture(path) for path in paths])
