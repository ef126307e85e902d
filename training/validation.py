"""The loss on a fixed set of (picture, noise, level), which means something where the training loss does not.

Noise level and noise dominate the training loss; with both held still, what is left is the adapter. Measured on held-out
pictures and on as many that are trained, it shows when the first curve turns while the second falls on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import loss as losses
from . import noise as noises
from .dataset.plan import Batch, Plan
from .encode import Encoded, size_conditioning
from .transfer import to_device

if TYPE_CHECKING:
    from .loop import Denoiser
    from .network.attach import Adapter

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


def validate(
    model: Denoiser,
    adapter: Adapter,
    encoded: Encoded,
    plan: Plan,
    levels: noises.LevelSampler,
    epoch: int,
    check: Check = lambda: None,
) -> Validation:
    """Both losses, equal whenever the adapter is equal; the model is held and the adapter attached by the caller.

    Mean square error, masked as in training but without any weights, so that runs with different weights compare. Nothing is
    drawn from any generator of the run, and nothing is dropped from here to the next step.
    """
    adapter.end_step()
    with torch.no_grad():
        held = fixed_losses(model, encoded, plan, plan.validation, levels, check)
        share = fixed_losses(model, encoded, plan, plan.training_share, levels, check)
        both = torch.cat([held, share]).tolist()
    count = len(held)
    return Validation(epoch, sum(both[:count]) / count if count else None, sum(both[count:]) / len(share))


def fixed_losses(
    model: Denoiser,
    encoded: Encoded,
    plan: Plan,
    batches: Sequence[Batch],
    levels: noises.LevelSampler,
    check: Check = lambda: None,
) -> Tensor:
    """The loss of every picture of ``batches``, averaged over the levels, (pictures,) on the model's device.

    The model is held and the adapter attached by the caller, as is ``no_grad``.
    """
    found = [batch_losses(model, encoded, plan, batch, levels, check) for batch in batches]
    return torch.cat(found) if found else torch.empty(0, device=model.device)


def batch_losses(
    model: Denoiser, encoded: Encoded, plan: Plan, batch: Batch, levels: noises.LevelSampler, check: Check = lambda: None
) -> Tensor:
    """The loss of every picture of one batch, averaged over the levels, (B,)."""
    subset = plan.dataset.subsets[batch.subset]
    latents, views, mask = encoded.latents(batch)
    x0 = model.latents_in(to_device(latents, model.device))
    mask = to_device(mask, model.device) if mask is not None else None
    texts = encoded.conditionings(batch)
    total = torch.zeros(len(x0), device=model.device)
    sigmas = to_device(levels.quantiles(LEVELS, (x0.shape[-2], x0.shape[-1])), model.device)
    for number in range(LEVELS):
        check()
        sigma = sigmas[number].expand(len(x0))
        drawn = torch.cat([fixed_noise(subset.samples[i].key, number, x0[:1].shape) for i in batch.samples])
        noise = to_device(drawn, model.device)
        x = noises.noisy(model.prediction, x0, noise, sigma)
        conditions = [
            model.condition(text, x[i : i + 1], size_conditioning(shown))
            for i, (text, shown) in enumerate(zip(texts, views, strict=True))
        ]
        answer = model.predict(x, sigma, conditions)
        wanted = noises.target(model.prediction, x0, noise, sigma)
        total += losses.per_sample_loss(answer, wanted, mask, subset.config.mask_floor)
    return total / LEVELS


def fixed_noise(key: str, level: int, shape: Sequence[int]) -> Tensor:
    """The noise of the picture with this ``key`` at the ``level``-th level: the same in every run and every batch."""
    seed = int.from_bytes(hashlib.sha256(f"validation:{key}".encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return torch.randn(tuple(shape), generator=noises.step_generator(seed, level))
