"""How wrong a prediction was. Formulas only."""

from __future__ import annotations

from torch import Tensor


def per_sample_loss(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of every picture, (B,), in float32 and in the model's own prediction space."""
    difference = prediction.float() - wanted.float()
    return difference.square().flatten(1).mean(1)


def batch_loss(prediction: Tensor, wanted: Tensor) -> Tensor:
    """The scalar that is minimised: the mean over the batch, so that a short batch weighs as much as a full one."""
    return per_sample_loss(prediction, wanted).mean()
