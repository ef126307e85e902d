"""Validation loss on a fixed set of (picture, noise, level), which means something where the training loss does not.

Noise level and noise dominate the training loss; with both held still, what is left is the adapter. Measured on held-out
pictures and on as many that are trained, it shows when the first curve turns while the second falls on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import seeding
from ..dataset.plan import Batch
from ..objective import loss as losses
from ..session import Session
from ..step import answer, loaded, noised
from ..tensors.transfer import to_device

LEVELS = 8
"""Noise levels at which every picture is looked at."""
Check = Callable[[], None]
"""Called before every batch and level; may raise to cancel."""


@dataclass(frozen=True)
class Validation:
    """Where a run stood at the end of an epoch."""

    epoch: int
    """1-based."""
    held_out: float | None
    """Mean loss of the pictures that are never trained on; None if there are none."""
    training: float
    """Mean loss of the fixed share of the trained pictures."""


def validate(session: Session, epoch: int, check: Check = lambda: None) -> Validation:
    """Both losses, equal whenever the adapter is equal; the model is held and the adapter attached by the caller.

    Mean square error, masked as in training but without any weights, so that runs with different weights compare. Nothing is
    drawn from any generator of the run, and nothing is dropped from here to the next step.
    """
    session.adapter.end_step()
    with torch.no_grad():
        held = fixed_losses(session, session.plan.validation, check)
        share = fixed_losses(session, session.plan.training_share, check)
        both = torch.cat([held, share]).tolist()
    count = len(held)
    return Validation(epoch, sum(both[:count]) / count if count else None, sum(both[count:]) / len(share))


def fixed_losses(session: Session, batches: Sequence[Batch], check: Check = lambda: None) -> Tensor:
    """The loss of every picture of ``batches``, averaged over the levels, (pictures,) on the model's device.

    The model is held and the adapter attached by the caller, as is ``no_grad``.
    """
    found = [batch_losses(session, batch, check) for batch in batches]
    return torch.cat(found) if found else torch.empty(0, device=session.model.device)


def batch_losses(session: Session, batch: Batch, check: Check = lambda: None) -> Tensor:
    """The loss of every picture of one batch, averaged over the levels, (B,)."""
    model, subset = session.model, session.plan.dataset.subsets[batch.subset]
    x0, sizes, mask = loaded(session, batch)
    texts = session.encoded.conditionings(batch)
    total = torch.zeros(len(x0), device=model.device)
    sigmas = to_device(session.levels.quantiles(LEVELS, x0.shape[2:]), model.device)
    for number in range(LEVELS):
        check()
        drawn = torch.cat([seeding.fixed_noise(subset.samples[i].key, number, x0[:1].shape) for i in batch.samples])
        noise = to_device(drawn, model.device)
        asked = noised(model, x0, sigmas[number].expand(len(x0)), noise, texts, sizes)
        total += losses.per_sample_loss(answer(model, asked), asked.target, mask, subset.config.mask_floor)
    return total / LEVELS
