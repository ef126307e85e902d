"""Training losses: Huber variants, level weights, masks. Formulas only.

The order is that of the established trainers: per element (square or Huber), mask, mean over space, weight of the noise level,
weight of the subset, mean over the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import LossConfig
from ..errors import AtelierError
from ..protocols import Prediction
from .noise import expand_like

PLAIN = LossConfig()
LARGEST_SNR = 1000.0
"""Debiased estimation takes no more than this for the signal-to-noise ratio of the cleanest levels."""


def mask_weights(mask: Tensor, floor: float | Tensor) -> Tensor:
    """Weight of every cell: max(mask, floor), divided by its mean over the picture so that a small mask is no small loss.

    ``mask`` is (B, 1, h, w) in 0..1. A picture whose mask is 0 everywhere, with floor 0, has weight 0.
    """
    raised = mask.float().clamp_min(floor)
    return raised / raised.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-6)


def outside_weights(mask: Tensor, floor: float | Tensor) -> Tensor:
    """What ``mask_weights`` leaves of every cell, 1 - max(mask, floor), divided by its mean over the picture in the same way.

    A picture that is white all over has nothing outside, and weight 0.
    """
    rest = 1 - mask.float().clamp_min(floor)
    return rest / rest.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-6)


def snr(kind: Prediction, sigma: Tensor) -> Tensor:
    """Signal-to-noise ratio of every level, (B,): 1 / sigma^2 for eps and v, ((1 - sigma) / sigma)^2 for flow.

    ``sigma`` comes from the host's own table, so a zero terminal SNR is already in it.
    """
    signal = 1 - sigma if kind == "flow" else 1.0
    return (signal / sigma).square()


def level_weights(kind: Prediction, sigma: Tensor, config: LossConfig) -> Tensor:
    """Weight of every picture's noise level, (B,); finite for every sigma above 0, also under a zero terminal SNR.

    With S the SNR: min-SNR (Hang et al. 2023, arXiv 2303.09556, section 3.4) is min(S, g) / S for eps and min(S, g) / (S + 1)
    for v; debiased (Yu et al. 2023, arXiv 2310.08442) is 1 / sqrt(min(S, 1000)) for eps and, in the way of kohya's trainer,
    1 / (min(S, 1000) + 1) for v. For flow (Esser et al. 2024, section 3.1): sigma-sqrt is sigma^-2, cosmap is
    2 / (pi (1 - 2 sigma + 2 sigma^2)).
    """
    check_weighting(kind, config)
    if config.weighting == "sigma-sqrt":
        return sigma.square().reciprocal()
    if config.weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))
    if config.weighting == "none":
        return torch.ones_like(sigma)
    s = snr(kind, sigma)
    if config.weighting == "min-SNR":
        return s.clamp_max(config.snr_gamma) / (s + 1) if kind == "v" else (config.snr_gamma / s).clamp_max(1.0)
    limited = s.clamp_max(LARGEST_SNR)
    return (limited + 1).reciprocal() if kind == "v" else limited.rsqrt()


def check_weighting(kind: Prediction, config: LossConfig) -> None:
    """AtelierError if this weighting is not for this kind of model."""
    flow = ("none", "sigma-sqrt", "cosmap")
    discrete = ("none", "min-SNR", "debiased")
    allowed = flow if kind == "flow" else discrete
    if config.weighting not in allowed:
        raise AtelierError(
            f"weighting: {config.weighting} is not for {kind} models, and this is one. Choose {', '.join(allowed[:-1])} or "
            f"{allowed[-1]}."
        )


def huber_thresholds(kind: Prediction, sigma: Tensor, config: LossConfig) -> Tensor:
    """Where the loss turns from square to linear, for every picture, (B,).

    ``snr``: (1 - c) / (1 + sigma)^2 + c with sigma the noise over the signal (for flow sigma / (1 - sigma)), as in kohya's
    trainer: 1, nearly the square, without noise, and c at the noisy end.
    """
    c = config.huber_threshold
    if config.huber_schedule == "constant":
        return torch.full_like(sigma, c)
    share = 1 - sigma if kind == "flow" else (1 + sigma).reciprocal()
    return (1 - c) * share.square() + c


def element_loss(error: Tensor, config: LossConfig = PLAIN, thresholds: Tensor | None = None) -> Tensor:
    """The loss of every element from its ``error`` (prediction - wanted).

    mse: d^2. huber: 2 c (sqrt(d^2 + c^2) - c), which is d^2 near 0 and 2 c |d| far out. smooth-l1: the same over c. These are
    the pseudo-Huber forms of the established trainers; ``thresholds`` holds c for every picture, (B,).
    """
    squares = error.square()
    if config.kind == "mse":
        return squares
    if thresholds is None:
        raise ValueError("huber and smooth-l1 need thresholds")
    c = expand_like(thresholds, error)
    # The same as sqrt(d^2 + c^2) - c, but exact where d is small.
    rise = squares / ((squares + c.square()).sqrt() + c)
    return 2 * c * rise if config.kind == "huber" else 2 * rise


def per_sample_loss(
    prediction: Tensor,
    wanted: Tensor,
    mask: Tensor | None = None,
    floor: float | Tensor = 0.0,
    config: LossConfig = PLAIN,
    thresholds: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """Mean loss of every picture, (B,), in float32 and in the model's own prediction space, before any weight.

    ``prediction`` is (B, C, h, w), or (B, C, t, h, w) for models that know time; ``mask`` (B, 1, h, w) weighs the cells.
    ``before``, what the model answered before training, is what is wanted outside the mask: each side is the mean over its own
    cells, and the outside counts ``mask_preservation`` times (OneTrainer's masked prior preservation with normalised areas).
    """
    elements = element_loss(prediction.float() - wanted.float(), config, thresholds)
    if mask is not None:
        elements = elements * _over(elements, mask_weights(mask, floor))
    if mask is not None and before is not None:
        held = element_loss(prediction.float() - before.float(), config, thresholds)
        elements = elements + config.mask_preservation * held * _over(elements, outside_weights(mask, floor))
    return elements.flatten(1).mean(1)


def _over(elements: Tensor, weights: Tensor) -> Tensor:
    """Weights of cells, (B, 1, h, w), so that they multiply the elements of latents."""
    return weights.reshape(len(weights), *[1] * (elements.ndim - 3), *weights.shape[-2:])


def batch_loss(
    prediction: Tensor,
    wanted: Tensor,
    mask: Tensor | None = None,
    floor: float | Tensor = 0.0,
    weight: float | Tensor = 1.0,
    kind: Prediction = "eps",
    sigma: Tensor | None = None,
    config: LossConfig = PLAIN,
    before: Tensor | None = None,
) -> Tensor:
    """The scalar that is minimised: the mean over the batch, so that a short batch weighs as much as a full one.

    ``weight`` is the subset's own, for regularisation the prior weight. ``sigma`` (B,) is each picture's noise level in a model
    of this ``kind``; only Huber losses and level weights ask for it. ``before`` as in ``per_sample_loss``.
    """
    thresholds = None
    if sigma is None:
        if config.kind != "mse" or config.weighting != "none":
            raise ValueError("this loss depends on the noise levels")
    elif config.kind != "mse":
        thresholds = huber_thresholds(kind, sigma, config)
    each = per_sample_loss(prediction, wanted, mask, floor, config, thresholds, before)
    if sigma is not None and config.weighting != "none":
        each = each * level_weights(kind, sigma, config)
    return weight * each.mean()
