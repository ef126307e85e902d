"""Protocols of a run's partners: denoiser, text encoder, encoders of captions and pictures, owner of layers.

The host implements them; the loop, the objective and the evaluation know nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Prediction = Literal["eps", "v", "flow"]
"""What a network predicts: the noise, the velocity of a variance-preserving process, or that of a rectified flow."""
EncodedText = Mapping[str, Tensor | float | str]
"""One text as models read it: ``cond``, ``pooled_output`` and extras, among them the latents of control pictures
(``tensors/references.py``); numbers and words come from other nodes only."""
Conditions = dict[str, Any]
"""What a network is given beside one picture, by the host's own names."""
CanvasText = list[list[Any]]
"""A CONDITIONING of the canvas: [tensor, values by name] for each of its parts."""


@dataclass(frozen=True)
class Together:
    """Pictures of a batch whose conditionings go through a network as one."""

    members: tuple[int, ...]
    """Their places in the batch."""
    conditions: Conditions
    """What they are given together; tensors are on the network's device."""


class Predictor(Protocol):
    """A network with its host's conditioning (``host.Model``, ``host.Outline``)."""

    @property
    def prediction(self) -> Prediction: ...
    @property
    def noise_scale(self) -> float: ...
    def latents_in(self, latents: Tensor) -> Tensor: ...
    def condition(self, text: EncodedText, x: Tensor, size: Mapping[str, float]) -> Conditions: ...
    def merged(self, conditions: Sequence[Conditions]) -> list[Together]: ...
    def answer(self, x: Tensor, sigma: Tensor, given: Sequence[Together]) -> Tensor: ...


class TrainedText(Protocol):
    """A text encoder that is trained beside the model (``host.TextEncoder``)."""

    @property
    def device(self) -> torch.device: ...
    def blocks(self) -> list[nn.Module]: ...
    def weights(self) -> list[Tensor]: ...


class Denoiser(Predictor, Protocol):
    """The frozen model (``host.Model``)."""

    @property
    def device(self) -> torch.device: ...
    @property
    def compute_dtype(self) -> torch.dtype: ...
    @property
    def has_copies(self) -> bool: ...
    def leave_room(self, needed: int | None) -> None: ...
    def hold(self, text: Any = None, offload: Any = 0.0) -> AbstractContextManager[None]: ...
    def blocks(self) -> list[nn.Module]: ...
    def weights(self) -> list[Tensor]: ...


class PictureEncoder(Protocol):
    """Pictures to latents (``host.PictureCodec``)."""

    @property
    def device(self) -> torch.device: ...
    def at_once(self, width: int, height: int) -> int: ...
    def encode(self, pixels: Tensor) -> Tensor: ...
    def encode_film(self, pixels: Tensor) -> Tensor: ...
    def identity(self) -> str: ...


class CaptionEncoder(Protocol):
    """Captions to conditioning (``host.TextEncoder``)."""

    def encode(self, text: str, pictures: Sequence[Tensor] = ()) -> dict[str, Tensor]: ...
    def encode_all(self, texts: Sequence[str]) -> Iterator[dict[str, Tensor]]: ...
    def read_ahead(self, text: str, pictures: Sequence[Tensor] = ()) -> None: ...
    def read_all_ahead(self, texts: Sequence[str]) -> Iterator[None]: ...
    @property
    def eyes(self) -> str: ...
    def identity(self) -> str: ...
    def reading_of(self, text: str) -> tuple[str, ...]: ...


class Answers(Protocol):
    """What parts of a text encoder that don't learn have said of texts, by names that tell both."""

    def get(self, key: str) -> Mapping[str, Tensor] | None: ...
    def has(self, key: str) -> bool: ...
    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None: ...


class LayerOwner(Protocol):
    """What has layers that an adapter can stand beside, and their names in LoRA files."""

    def layers(self) -> dict[str, nn.Module]: ...
    def lora_names(self) -> dict[str, list[str]]: ...
