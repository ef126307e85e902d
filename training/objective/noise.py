"""Noise, noise levels and prediction targets. Formulas only.

Latents ``x0`` and ``noise`` are (B, C, H, W) or (B, C, T, H, W); ``sigma`` is (B,) on the same device. The conventions are the
host's: for eps and v models sigma is the variance-exploding level (x_t = x0 + sigma e, the host divides by sqrt(1 + sigma^2)
itself), for flow models it is the mixing weight (x_t = (1 - sigma) x0 + sigma e).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import NoiseConfig
from ..families import UNKNOWN, BySize, Family, Shift
from ..protocols import Prediction

Distribution = Literal["uniform", "logit-normal", "shifted", "sigmoid"]
LARGEST_SIGMA = 4518.7
"""The host's last sigma under a zero terminal SNR (its squared alpha is set to 4.897e-8); an infinite one is taken for this."""


def expand_like(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) so that it multiplies a batch of latents."""
    return sigma.view(-1, *[1] * (like.ndim - 1))


def noisy(kind: Prediction, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The noised latent x_t."""
    s = expand_like(sigma, x0)
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
    s = expand_like(sigma, x0)
    return (noise - s * x0) / (1 + s * s).sqrt()


@dataclass(frozen=True)
class NoiseLevelSampler:
    """Draws the noise level of every picture of a batch."""

    kind: Prediction
    distribution: Distribution
    table: Tensor | None = None
    """Sigma of every discrete timestep, ascending; eps and v models only."""
    shift: Shift = 3.0
    """Taken when the distribution is ``shifted`` and the settings give no number."""
    settings: NoiseConfig = field(default_factory=NoiseConfig)
    """Parameters of the distributions and the range; its ``levels`` is not looked at."""

    @classmethod
    def suited(cls, kind: Prediction, settings: NoiseConfig, table: Tensor | None, family: Family = UNKNOWN) -> NoiseLevelSampler:
        """The sampler that ``settings`` ask for; ``auto`` is uniform for eps and v, and what the family wants for flow."""
        distribution = settings.levels
        if distribution == "auto":
            distribution = family.levels if kind == "flow" else "uniform"
        return cls(kind, distribution, table, family.shift, settings)

    def draw(
        self, count: int, latent_size: tuple[int, ...], generator: torch.Generator, place: float | None = None
    ) -> Tensor:  # fmt: skip
        """(count,) float32 on the CPU. ``latent_size`` is ([frames,] height, width) in latent cells.

        With a ``place`` in [0, 1) there is one level in each of ``count`` equally likely parts of the distribution, at that place
        of its part; which picture gets which is drawn.
        """
        if place is not None:
            even = (torch.randperm(count, generator=generator).double() + place) / count
            return self._at(even.clamp(1e-7, 1 - 1e-7), latent_size)
        if self.distribution == "uniform":
            return self._levels(torch.rand(count, generator=generator), latent_size)
        return self._levels(torch.randn(count, generator=generator), latent_size)

    def quantiles(self, count: int, latent_size: tuple[int, ...]) -> Tensor:
        """(count,) levels, ascending, in the middles of ``count`` equally likely parts of what ``draw`` gives."""
        return self._at((torch.arange(count, dtype=torch.float64) + 0.5) / count, latent_size)

    def _at(self, share: Tensor, latent_size: tuple[int, ...]) -> Tensor:
        """The levels below which these shares of the distribution lie, 0 < ``share`` < 1 in float64."""
        number = share if self.distribution == "uniform" else torch.special.ndtri(share)
        return self._levels(number.float(), latent_size)

    def _levels(self, number: Tensor, latent_size: tuple[int, ...]) -> Tensor:
        """From uniform numbers (``uniform``) or normal ones (the others) to sigma; ascending where these are."""
        how = self.settings
        u = number
        if self.distribution == "logit-normal":
            u = torch.sigmoid(how.logit_mean + how.logit_std * number)
        elif self.distribution != "uniform":
            u = torch.sigmoid(how.sigmoid_scale * number)
        if self.distribution == "shifted":
            own = self.shift.factor(latent_size) if isinstance(self.shift, BySize) else self.shift
            u = shift_level(u, how.shift or own)
        u = how.lowest + (how.highest - how.lowest) * u
        if self.kind == "flow":
            # The very ends carry no signal: at 0 nothing is asked, at 1 nothing of the picture is left.
            return u.clamp(1e-4, 1 - 1e-4)
        if self.table is None:
            raise ValueError("eps and v models need the table of discrete sigmas")
        index = (u * len(self.table)).long().clamp_(0, len(self.table) - 1)
        return self.table[index].float().clamp_max(LARGEST_SIGMA)


def shift_level(s: Tensor, factor: float) -> Tensor:
    """s' = k s / (1 + (k - 1) s) (Esser et al. 2024, equation 23)."""
    return factor * s / (1 + (factor - 1) * s)


def make_noise(shape: Sequence[int], config: NoiseConfig, generator: torch.Generator) -> Tensor:
    """The noise that is mixed into latents of ``shape`` and asked for, float32 on the CPU.

    Without settings it is ``torch.randn(shape)`` of this generator.
    """
    noise = torch.randn(tuple(shape), generator=generator)
    if config.pyramid_iterations > 0:
        noise = pyramid(noise, config.pyramid_iterations, config.pyramid_discount, generator)
    if config.offset > 0:
        noise = noise + offset(noise, config, generator)
    return noise


def offset(noise: Tensor, config: NoiseConfig, generator: torch.Generator) -> Tensor:
    """What the noise offset adds: strength x one normal number for every channel, (B, C or 1, 1, ...) (Guttenberg 2023)."""
    ones = [1] * (noise.ndim - 2)
    channels = noise.shape[1] if config.offset_each_channel else 1
    moved = config.offset * torch.randn(len(noise), channels, *ones, generator=generator)
    return moved * torch.rand(len(noise), 1, *ones, generator=generator) if config.offset_random else moved


def pyramid(noise: Tensor, iterations: int, discount: float, generator: torch.Generator) -> Tensor:
    """Multi-resolution noise (Whitaker 2023): layer i is noise of 1 / r^i of the size, r random in 2..4, times discount^i.

    It stops at a layer one cell wide. Every picture is brought back to standard deviation 1 by itself, so that its noise does
    not depend on the others of its batch.
    """
    height, width = noise.shape[-2:]
    total = noise
    for i in range(iterations):
        ratio = (2 + 2 * torch.rand((), generator=generator).item()) ** i
        small = max(1, int(height / ratio)), max(1, int(width / ratio))
        layer = torch.randn(1, noise[..., 0, 0].numel(), *small, generator=generator)
        layer = F.interpolate(layer, size=(height, width), mode="bilinear", align_corners=False)
        total = total + layer.view_as(noise) * discount**i
        if 1 in small:
            break
    return total / expand_like(total.flatten(1).std(1), total)


def perturbed(noise: Tensor, config: NoiseConfig, generator: torch.Generator) -> Tensor:
    """The noise that enters x_t under input perturbation, e + gamma e', while e remains what is asked for.

    Ning et al. 2023, arXiv 2301.11706, equation 8. Without perturbation it is ``noise`` itself, and nothing is drawn.
    """
    if config.perturbation == 0:
        return noise
    return noise + config.perturbation * torch.randn(noise.shape, generator=generator)
