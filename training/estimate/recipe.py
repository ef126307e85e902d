"""Recipe estimate: learning-rate curve, steps, file size and memory before a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..config import TrainingConfig
from ..network.scope import TEXT, trained_layers
from ..network.size import adapter_bytes, adapter_shapes
from ..optim import schedules
from ..optim.curve import curve, summary
from ..optim.remarks import remarks
from ..performance.memory import adapter_needs, kept_bytes
from ..tensors.precision import DTYPES

NOMINAL = 1000
"""Steps of a run whose length is not known yet: its curve is drawn from 0 to 100 %."""
ENTRY = 110
"""Bytes that one tensor takes in a file's header, about."""
ENTRIES = {"LoRA": 3, "LoHa": 5, "LoKr": 4}
"""Tensors of a layer, about."""


@dataclass(frozen=True)
class Outlook:
    """Numbers to be drawn; steps are those of the progress bar, a batch each."""

    points: tuple[tuple[int, float], ...]
    """(0-based step, rate)."""
    total: int
    known: bool
    """Whether ``total`` is the run's; if not, only shares of it mean something."""
    steps_per_epoch: int | None
    epochs: int | None
    """Epochs that are begun."""
    summary: str
    """The schedule in a line."""
    notes: tuple[str, ...] = ()
    """What of the optimizer and its schedule one may not expect, a sentence each."""


def look_ahead(config: TrainingConfig, steps_per_epoch: int | None) -> Outlook:
    """The outlook of a run whose epochs have so many steps (None: nobody knows yet).

    AtelierError where the schedule does not fit into the run.
    """
    optimizer, length = config.optimizer, config.length
    total = length.max_steps or (length.epochs * steps_per_epoch if steps_per_epoch else 0)
    known = total > 0
    if known:
        schedules.check(optimizer, optimizer.updates(total))
    else:
        warm = optimizer.warmup_steps * optimizer.accumulate
        total = max(NOMINAL, 10 * warm, math.ceil(1.1 * (warm + optimizer.cycles * optimizer.cycle_steps * optimizer.accumulate)))
    updates = optimizer.updates(total)
    points = tuple((min(step * optimizer.accumulate, total - 1), rate) for step, rate in curve(optimizer, updates))
    epochs = math.ceil(total / steps_per_epoch) if steps_per_epoch and known else None
    notes = tuple(remarks(optimizer, total if known else None, epochs))
    return Outlook(points, total, known, steps_per_epoch, epochs, summary(optimizer, updates), notes)


def sizes(
    config: TrainingConfig,
    layers: Mapping[str, nn.Module],
    names: Mapping[str, list[str]],
    text: Mapping[str, nn.Module] | None = None,
) -> tuple[int | None, int | None, int | None]:
    """Bytes of one LoRA file beside ``layers``, without the workflow in it, of the memory that the adapter and its optimizer take
    while it is trained, and of what is kept on the disk to go on; None where only training tells. ``text``: layers of the text
    encoder, by their own names, if they are known."""
    network = config.network
    if network.start_from or (config.text.encoders != "none" and text is None):
        return None, None, None
    known = {name: layer for name, layer in layers.items() if name in names}
    chosen = trained_layers({**known, **{TEXT + name: layer for name, layer in (text or {}).items()}}, config)
    numbers = adapter_bytes(chosen, network, DTYPES[config.save_precision])
    shapes = adapter_shapes(chosen, network)
    return numbers + len(chosen) * ENTRIES[network.algorithm] * ENTRY, adapter_needs(shapes, config), kept_bytes(shapes, config)
