"""Settings of a run, as frozen dataclasses that refuse contradictions in a painter's words.

The same classes travel in the workflow (as the widgets' values), in the LoRA's metadata and in the run's folder, so
``to_dict`` / ``from_dict`` keep to plain JSON values.
"""

from __future__ import annotations

from .network import Algorithm, NetworkConfig, Targets
from .noise import BLANK, HuberSchedule, LevelDraw, Levels, LossConfig, LossKind, NoiseConfig, Weighting
from .optimizer import OptimizerConfig, OptimizerName, ScheduleName
from .recipe import (
    RESERVED,
    BaseWeights,
    LengthConfig,
    OnDivergence,
    Precision,
    SavePrecision,
    Speed,
    Syntax,
    TextConfig,
    TextEncoders,
    TrainingConfig,
    WhenEnough,
    check_run_name,
    check_swept_name,
)
from .slider import Ends, SliderConfig, SliderSource
from .stored import from_dict, to_dict
from .subset import CAPTION_ENDINGS, ENCODINGS, GUESSED, Broken, CaptionLines, Crop, Masks, Role, SubsetConfig

__all__ = [
    "BLANK", "CAPTION_ENDINGS", "ENCODINGS", "GUESSED", "RESERVED", "Algorithm", "BaseWeights", "Broken", "CaptionLines", "Crop",
    "Ends", "HuberSchedule", "LengthConfig", "LevelDraw", "Levels", "LossConfig", "LossKind", "Masks", "NetworkConfig",
    "NoiseConfig", "OnDivergence", "OptimizerConfig", "OptimizerName", "Precision", "Role", "SavePrecision", "ScheduleName",
    "SliderConfig", "SliderSource", "Speed", "SubsetConfig", "Syntax", "Targets", "TextConfig", "TextEncoders",
    "TrainingConfig", "Weighting", "WhenEnough", "check_run_name", "check_swept_name", "from_dict", "to_dict",
]  # fmt: skip
