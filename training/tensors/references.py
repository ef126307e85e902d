"""Latents of control pictures beside a text, as models that edit pictures read them.

They travel under flat names (``reference_latents.0``, ``.1``, ...), so that whatever stores, moves or compares a text's tensors
does the same with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor

NAME = "reference_latents"
"""As the host's nodes call the list."""
METHOD = "reference_latents_method"
"""How a network tells them from the picture, where a node says it."""
Value = TypeVar("Value")


def numbered(latents: Sequence[Tensor]) -> dict[str, Tensor]:
    """Each latent (1, C, h, w), or (1, C, 1, h, w) of a video VAE, under its flat name."""
    return {f"{NAME}.{number}": latent for number, latent in enumerate(latents)}


def is_numbered(name: str) -> bool:
    return name.startswith(f"{NAME}.")


def listed(text: Mapping[str, Value]) -> list[Value]:
    """The latents of a text, in their order."""
    count = sum(map(is_numbered, text))
    return [text[f"{NAME}.{number}"] for number in range(count)]


def beside(text: Mapping[str, Value]) -> dict[str, Value]:
    """What of a text is no word of it: its control pictures, and how they are told apart."""
    return {name: value for name, value in text.items() if is_numbered(name) or name == METHOD}
