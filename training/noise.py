"""What the model is asked to predict, and at which noise level. Formulas only.

Latents ``x0`` and ``noise`` are (B, C, H, W) or (B, C, T, H, W); ``sigma`` is (B,) on the same device. The conventions are the
host's: for eps and v models sigma is the variance-exploding level (x_t = x0 + sigma e, the host divides by sqrt(1 + sigma^2)
itself), for flow models it is the mixing weight (x_t = (1 - sigma) x0 + sigma e).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["eps", "v", "flow"]
Distribution = Literal["uniform", "logit-normal", "shifted"]


def spread(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) so that it multiplies a batch of latents."""
    return sigma.view(-1, *[1] * (like.ndim - 1))


def noisy(kind: Prediction, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The noised latent x_t."""
    s = spread(sigma, x0)
    return (1 - s) * x0 + s * noise if kind == "flow" else x0 + s * noise


def target(kind: Prediction, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect model answers at x_t, in its own prediction space.

    eps: e (Ho et al. 2020). v: alpha e - s x0 with alpha = 1/sqrt(1 + sigma^2), s = sigma alpha (Salimans & Ho 2022).
    flow: e - x0 (Liu et al. 2022; Esser et al. 2024).
    """
    if kind == "eps":
        return noise
    if kind == "flow":
        return noise - x0
    s = spread(sigma, x0)
    return (noise - s * x0) / (1 + s * s).sqrt()


@dataclass(frozen=True)
class LevelSampler:
    """Draws the noise level of every picture of a batch."""

    kind: Prediction
    distribution: Distribution
    table: Tensor | None = None
    """Sigma of every discrete timestep, ascending; eps and v models only."""
    flux_shift: bool = False
    """Shift by the picture's size (Flux) instead of the fixed factor 3 (SD3) when the distribution is ``shifted``."""

    def draw(self, count: int, latent_size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """(count,) float32 on the CPU. ``latent_size`` is (height, width) in latent cells."""
        if self.distribution == "uniform":
            u = torch.rand(count, generator=generator)
        else:
            u = torch.sigmoid(torch.randn(count, generator=generator))
        if self.kind != "flow":
            if self.table is None:
                raise ValueError("eps and v models need the table of discrete sigmas")
            index = (u * len(self.table)).long().clamp_(0, len(self.table) - 1)
            return self.table[index].float()
        if self.distribution == "shifted":
            u = shift_level(u, flux_shift_factor(latent_size) if self.flux_shift else 3.0)
        # The very ends carry no signal: at 0 nothing is asked, at 1 nothing of the picture is left.
        return u.clamp(1e-4, 1 - 1e-4)


def shift_level(s: Tensor, factor: float) -> Tensor:
    """s' = k s / (1 + (k - 1) s) (Esser et al. 2024, equation 23)."""
    return factor * s / (1 + (factor - 1) * s)


def flux_shift_factor(latent_size: tuple[int, int]) -> float:
    """k = e^mu with mu linear in the number of 2 x 2 patches: 0.5 at 256, 1.15 at 4096 (Flux's published schedule)."""
    patches = (latent_size[0] / 2) * (latent_size[1] / 2)
    return math.exp(0.5 + 0.65 * (patches - 256) / 3840)


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments, so that step k draws the same numbers after a resume.

    The mixing is SplitMix64's finaliser, which spreads neighbouring steps over the whole seed space.
    """
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + stream * 0x8CB92BA72F3D8DD7 + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return torch.Generator().manual_seed((z ^ (z >> 31)) & (2**63 - 1))
