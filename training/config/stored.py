"""Settings as plain JSON values and back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from .network import NetworkConfig
from .noise import LossConfig, NoiseConfig
from .optimizer import OptimizerConfig
from .recipe import LengthConfig, TextConfig
from .refusal import refuse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Plain JSON values of a configuration."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The configuration that ``to_dict`` wrote; an unknown field is an error, a missing one takes its default."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    refuse(bool(unknown), f"{kind.__name__}: unknown setting {', '.join(unknown)}.")
    nested: dict[str, type[DataclassInstance]] = {
        "network": NetworkConfig, "optimizer": OptimizerConfig, "noise": NoiseConfig, "loss": LossConfig,
        "length": LengthConfig, "text": TextConfig,
    }  # fmt: skip
    parts = {k: from_dict(nested[k], v) if k in nested and isinstance(v, dict) else v for k, v in values.items()}
    return kind(**parts)
