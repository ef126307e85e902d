"""Training session: what a run works with from its first step to its last, as one value.

Loop, validation and preflight take it instead of its eight parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from .config import TrainingConfig
from .dataset.encoded import EncodedDataset
from .dataset.plan import Plan
from .network.adapter import Adapter
from .objective.noise import NoiseLevelSampler
from .performance.memory import Measured
from .performance.thrift import Thrift
from .protocols import Denoiser, TrainedText


@dataclass(frozen=True)
class Session:
    """The frozen model, the adapter beside its layers, the data in their order, and the recipe."""

    model: Denoiser
    text: TrainedText | None
    """The text encoder if it is trained as well."""
    layers: Mapping[str, nn.Module]
    """Those beside which the adapter stands, by name."""
    adapter: Adapter
    levels: NoiseLevelSampler
    encoded: EncodedDataset
    plan: Plan
    config: TrainingConfig
    thrift: Thrift = field(default=None)  # type: ignore[assignment]
    """What is done for less memory; if it isn't given, what the recipe asks for."""
    forecast: Measured | None = None
    """What the run will need, where it has been measured."""
    pass_seconds: float | None = None
    """A forward pass of one picture, where it has been timed."""
    shards: int = 1
    """So many processes hold a part each of the model's blocks."""

    def __post_init__(self) -> None:
        if self.thrift is None:
            blocks = self.model.blocks()
            asked = Thrift.asked(self.config, len(self.blocks()), len(blocks), self.model.device)
            object.__setattr__(self, "thrift", asked.sharing(self.shards) if self.shards > 1 else asked)

    @property
    def total_steps(self) -> int:
        return total_steps(self.config, self.plan)

    def blocks(self) -> list[nn.Module]:
        """Of the model, and of the text encoder if it is trained."""
        return [*self.model.blocks(), *(self.text.blocks() if self.text else ())]


def total_steps(config: TrainingConfig, plan: Plan) -> int:
    """Steps of the whole run."""
    return config.length.max_steps or config.length.epochs * plan.steps_per_epoch
