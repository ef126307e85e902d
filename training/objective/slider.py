"""Targets of a slider that is learnt from prompts (Gandikota et al. 2023, arXiv 2311.12092, section 4; formulas only).

With d = g x (answer to the positive prompt - answer to the negative one), all by the model as it was, the LoRA at strength 1 is
to answer the target prompt with what the model answered it before plus d, and at strength -1 with that minus d. The paper trains
one direction; that both are trained in one step is ai-toolkit's way, and that of the paper's own sliders from pictures.
"""

from __future__ import annotations

from torch import Tensor

WAYS = (1.0, -1.0)
"""Strengths of the adapter at which a slider is trained."""


def slider_target(way: float, before: Tensor, positive: Tensor, negative: Tensor, guidance: float) -> Tensor:
    """What the target prompt is to be answered with at the strength ``way``; all (B, C, h, w), in the model's own space."""
    return before + way * guidance * (positive - negative)
