"""Targets and noise levels against the host's formulas, diffusers, and published numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training import noise


def test_v_target_is_that_of_diffusers(comfyui):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)
    x0, e = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    t = torch.tensor([3, 250, 600, 990])
    alphas = scheduler.alphas_cumprod[t]
    sigma = ((1 - alphas) / alphas).sqrt()
    assert torch.allclose(noise.target("v", x0, e, sigma), scheduler.get_velocity(x0, e, t), atol=1e-5)
    # diffusers keeps the variance at 1; the host's x is the same picture before its division by sqrt(1 + sigma^2).
    ours = noise.noisy("v", x0, e, sigma) / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
    assert torch.allclose(ours, scheduler.add_noise(x0, e, t), atol=1e-5)


def test_flow_target_is_that_of_diffusers(comfyui):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    x0, e = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    t = scheduler.timesteps[[100, 900]]
    expected = scheduler.scale_noise(x0, t, e)
    sigma = scheduler.sigmas[[100, 900]]
    x = noise.noisy("flow", x0, e, sigma)
    assert torch.allclose(x, expected, atol=1e-6)
    # one Euler step from x along the target to level 0 lands on the clean latent
    assert torch.allclose(x - noise.spread(sigma, x) * noise.target("flow", x0, e, sigma), x0, atol=1e-5)


def test_flux_shift_at_the_published_sizes():
    assert noise.flux_shift_factor((128, 128)) == pytest.approx(3.158, abs=1e-3)  # 1024 x 1024 pixels: mu = 1.15
    assert noise.flux_shift_factor((32, 32)) == pytest.approx(1.6487, abs=1e-4)  # 256 x 256: mu = 0.5


@given(st.floats(0.01, 0.99), st.floats(0.5, 6.0))
def test_shifting_is_undone_by_the_inverse_factor(level, factor):
    there = noise.shift_level(torch.tensor(level, dtype=torch.float64), factor)
    assert noise.shift_level(there, 1 / factor).item() == pytest.approx(level, rel=1e-9)


def test_uniform_levels_use_every_discrete_timestep_alike():
    table = torch.linspace(0.03, 14.6, 1000)
    sampler = noise.LevelSampler("eps", "uniform", table)
    drawn = sampler.draw(200_000, (8, 8), torch.Generator().manual_seed(0))
    counts = torch.histc(drawn, bins=10, min=0.03, max=14.6)
    assert counts.min() > 19_000 and counts.max() < 21_000
    assert torch.isin(drawn, table).all()


def test_logit_normal_levels_have_the_papers_density():
    from scipy.stats import kstest, norm

    drawn = noise.LevelSampler("flow", "logit-normal").draw(20_000, (8, 8), torch.Generator().manual_seed(0))
    assert kstest(torch.logit(drawn.double()).numpy(), norm.cdf).pvalue > 0.001
    shifted = noise.LevelSampler("flow", "shifted").draw(20_000, (8, 8), torch.Generator().manual_seed(0))
    assert shifted.median().item() == pytest.approx(0.75, abs=0.01)  # 3 x 0.5 / (1 + 2 x 0.5)


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**7))
def test_the_noise_of_a_step_depends_on_seed_and_step_only(seed, step):
    first, again = noise.step_generator(seed, step), noise.step_generator(seed, step)
    next_step, other_seed = noise.step_generator(seed, step + 1), noise.step_generator((seed + 1) % 2**64, step)
    numbers = [torch.randn(4, generator=g) for g in (first, again, next_step, other_seed)]
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2]) and not torch.equal(numbers[0], numbers[3])
