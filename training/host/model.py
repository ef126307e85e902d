"""MODEL of the host."""

from __future__ import annotations

from .holding import HeldModel
from .sampling import SampledModel


class Model(HeldModel, SampledModel):
    """A loaded diffusion model, for training beside it and for sampling."""
