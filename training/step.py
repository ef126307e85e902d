"""Noised prediction and training loss: from a batch to the scalar that gradients are taken of.

Loop, validation and memory estimates share one passage, ``noised_prediction``, so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import seeding
from .dataset.encoded import size_conditioning
from .dataset.plan import Batch
from .objective import loss as losses
from .objective import noise as noises
from .objective.preservation import base_prediction, preservation_loss
from .protocols import Conditions, Denoiser, EncodedText, Predictor
from .session import Session
from .tensors.transfer import to_device, with_one_way_back

Sizes = Sequence[Mapping[str, int]]


@dataclass(frozen=True)
class NoisedPrediction:
    """What a model predicted for noised latents, and what it was given; all of batch size B, on the model's device."""

    x: Tensor
    """Noised latents (B, C, h, w)."""
    sigma: Tensor
    """(B,)"""
    conditions: list[Conditions]
    prediction: Tensor
    """(B, C, h, w) in float32."""
    target: Tensor
    """What should have been predicted, (B, C, h, w)."""


def noised_prediction(
    model: Predictor,
    x0: Tensor,
    sigma: Tensor,
    noise: Tensor,
    texts: Sequence[EncodedText],
    sizes: Sizes,
    mixed_in: Tensor | None = None,
) -> NoisedPrediction:
    """The prediction for latents ``x0`` (B, C, h, w) with ``noise`` at ``sigma`` (B,), and its target.

    ``texts`` and ``sizes`` are a conditioning and a size conditioning for each sample. ``mixed_in`` is the noise that the model
    is given where it is not the one asked for (input perturbation).
    """
    x = noises.noisy(model.prediction, x0, noise if mixed_in is None else mixed_in, sigma)
    conditions = conditions_of(model, x, texts, sizes)
    prediction = model.predict(x, sigma, conditions)
    return NoisedPrediction(x, sigma, conditions, prediction, noises.target(model.prediction, x0, noise, sigma))


def conditions_of(model: Predictor, x: Tensor, texts: Sequence[EncodedText], sizes: Sizes) -> list[Conditions]:
    """The host's conditioning of each sample of ``x``."""
    return [model.condition(text, x[i : i + 1], size) for i, (text, size) in enumerate(zip(texts, sizes, strict=True))]


def loaded(session: Session, batch: Batch) -> tuple[Tensor, list[dict[str, int]], Tensor | None]:
    """(latents as the model sees them, size conditioning of each sample, masks or None), on the model's device."""
    latents, views, mask = session.encoded.latents(batch)
    device = session.model.device
    x0 = session.model.latents_in(to_device(latents, device))
    return x0, [size_conditioning(view) for view in views], to_device(mask, device) if mask is not None else None


def step_loss(session: Session, batch: Batch, step: int) -> Tensor:
    """The loss of one batch, a scalar that gradients can be taken of; everything random in it follows from (seed, step)."""
    model, config = session.model, session.config
    subset = session.plan.dataset.subsets[batch.subset].config
    x0, sizes, mask = loaded(session, batch)
    draw = seeding.step_generator(config.seed, step)
    sigma = to_device(session.levels.draw(len(x0), (x0.shape[-2], x0.shape[-1]), draw), model.device)
    drawn = noises.make_noise(x0.shape, config.noise, draw)
    noise = to_device(drawn, model.device)
    mixed_in = to_device(noises.perturbed(drawn, config.noise, draw), model.device)
    texts = with_one_way_back(session.encoded.conditionings(batch), model.device)
    given = noised_prediction(model, x0, sigma, noise, texts, sizes, mixed_in)

    strength, prompt = config.loss.preservation, config.loss.preservation_prompt
    if strength and not prompt and subset.role == "regularisation":
        before = base_prediction(model, session.adapter, given.x, sigma, given.conditions)
        return subset.loss_weight * strength * preservation_loss(given.prediction, before)
    loss = losses.batch_loss(
        given.prediction, given.target, mask, subset.mask_floor, subset.loss_weight, model.prediction, sigma, config.loss
    )
    if strength and prompt:
        conditions = conditions_of(model, given.x, [session.encoded.text(prompt)] * len(x0), sizes)
        before = base_prediction(model, session.adapter, given.x, sigma, conditions)
        loss = loss + strength * preservation_loss(model.predict(given.x, sigma, conditions), before)
    return loss


def computes_in_half(model: Denoiser) -> bool:
    """fp16 gradients underflow without loss scaling; bf16 and fp32 need none.

    Scaling waits for the device once a step to see whether a gradient overflowed, except with AdamW, which sees that itself.
    """
    return model.compute_dtype == torch.float16
