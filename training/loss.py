"""How wrong a prediction was. Formulas only.

The order is that of the established trainers: per element, mask, mean over space, weight of the subset, mean over the batch.
"""

from __future__ import annotations

from torch import Tensor


def mask_weights(mask: Tensor, floor: float) -> Tensor:
    """Weight of every cell: max(mask, floor), divided by its mean over the picture so that a small mask is no small loss.

    ``mask`` is (B, 1, h, w) in 0..1. A picture whose mask is 0 everywhere, with floor 0, has weight 0.
    """
    raised = mask.float().clamp_min(floor)
    return raised / raised.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-6)


def per_sample_loss(prediction: Tensor, wanted: Tensor, mask: Tensor | None = None, floor: float = 0.0) -> Tensor:
    """Mean squared error of every picture, (B,), in float32 and in the model's own prediction space.

    ``prediction`` is (B, C, h, w), or (B, C, t, h, w) for models that know time; ``mask`` (B, 1, h, w) weighs the cells.
    """
    squares = (prediction.float() - wanted.float()).square()
    if mask is not None:
        weights = mask_weights(mask, floor)
        squares = squares * weights.reshape(len(weights), *[1] * (squares.ndim - 3), *weights.shape[-2:])
    return squares.flatten(1).mean(1)


def batch_loss(prediction: Tensor, wanted: Tensor, mask: Tensor | None = None, floor: float = 0.0, weight: float = 1.0) -> Tensor:
    """The scalar that is minimised: the mean over the batch, so that a short batch weighs as much as a full one.

    ``weight`` is the subset's own, for regularisation the prior weight.
    """
    return weight * per_sample_loss(prediction, wanted, mask, floor).mean()
