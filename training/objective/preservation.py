"""Output preservation: the model with the adapter is held to what it predicted without it.

Outside of masks ``LossConfig.mask_preservation`` makes the base model's own answer the target (``loss.per_sample_loss``). In two
ways it is held everywhere, both switched on by ``LossConfig.preservation`` (the weight w):

- With ``preservation_prompt`` (a class, such as "a woman"), every training step asks once more, at the same noised latents and
  levels but with the class prompt in place of the captions, and adds w x ``preservation_loss``. This is the differential output
  preservation of ai-toolkit.
- Without a prompt, the steps of regularisation pictures take the base model's own answer to their own captions for the target,
  instead of what the noise and the picture ask for, and nothing is added.

In a training step of the first way, ``given`` being the merged conditionings of the class prompt::

    before = base_prediction(model, adapter, x, sigma, given)
    after = model.answer(x, sigma, given)
    loss = loss + config.loss.preservation * preservation_loss(after, before)

In a regularisation step of the second, ``answer`` being the prediction that is there anyway::

    before = base_prediction(model, adapter, x, sigma, given)
    loss = subset.loss_weight * config.loss.preservation * preservation_loss(answer, before)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from ..network.adapter import Adapter
    from ..protocols import Denoiser, Together


@torch.no_grad()
def base_prediction(model: Denoiser, adapter: Adapter, x: Tensor, sigma: Tensor, given: Sequence[Together]) -> Tensor:
    """The prediction for ``x`` (B, C, h, w) at ``sigma`` (B,) without the attached adapter; no gradient reaches it."""
    with adapter.disabled():
        return model.answer(x, sigma, given)


def preservation_loss(pred_with: Tensor, pred_without: Tensor) -> Tensor:
    """Mean square of the difference between the answers with and without the adapter, a scalar; 0 as training begins."""
    return F.mse_loss(pred_with.float(), pred_without.detach().float())
