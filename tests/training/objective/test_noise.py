"""Targets and noise levels against the host's formulas, diffusers, and published numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training import seeding
from lora_atelier.training.config import NoiseConfig
from lora_atelier.training.families import FAMILIES, UNKNOWN, BySize
from lora_atelier.training.objective import noise


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
    assert torch.allclose(x - noise.expand_like(sigma, x) * noise.target("flow", x0, e, sigma), x0, atol=1e-5)


def test_flux_shift_at_the_published_sizes():
    assert BySize().factor((128, 128)) == pytest.approx(3.158, abs=1e-3)  # 1024 x 1024 pixels: mu = 1.15
    assert BySize().factor((32, 32)) == pytest.approx(1.6487, abs=1e-4)  # 256 x 256: mu = 0.5


@pytest.mark.parametrize("cells", [(1, 16, 24), (4, 16, 16), (13, 16, 24), (21, 15, 22)])
def test_levels_of_a_film_are_those_of_lightricks_for_all_its_frames(comfyui, cells):
    """What the stock node of theirs makes of even levels; their trainer counts the whole sequence in the same way."""
    from comfy_extras.nodes_lt import ModelSamplingLTXV

    from ...zoo.build import build
    from ...zoo.recipes import RECIPES

    model = build(next(recipe for recipe in RECIPES if recipe.family == "LTXV")).model.patcher
    patched = ModelSamplingLTXV.execute(model, 2.05, 0.95, {"samples": torch.zeros(1, 128, *cells)}).args[0]
    even = torch.sigmoid(torch.special.ndtri((torch.arange(50, dtype=torch.float64) + 0.5) / 50))
    stock = [patched.get_model_object("model_sampling").sigma(level) for level in even]
    ours = noise.NoiseLevelSampler.suited("flow", NoiseConfig(), None, FAMILIES["LTXV"]).quantiles(50, cells)
    assert ours.tolist() == pytest.approx([float(level) for level in stock], rel=1e-5)


def test_one_frame_counts_as_a_picture_and_no_film_is_too_long():
    shift = FAMILIES["LTXV"].shift
    assert isinstance(shift, BySize)
    assert shift.factor((1, 64, 64)) == shift.factor((64, 64)) == pytest.approx(math.exp(2.05))
    assert shift.factor((4, 16, 16)) == pytest.approx(math.exp(0.95))
    longest = noise.NoiseLevelSampler.suited("flow", NoiseConfig(), None, FAMILIES["LTXV"]).quantiles(9, (10_000, 64, 64))
    assert longest.tolist() == pytest.approx([1 - 1e-4] * 9)


@given(st.floats(0.01, 0.99), st.floats(0.5, 6.0))
def test_shifting_is_undone_by_the_inverse_factor(level, factor):
    there = noise.shift_level(torch.tensor(level, dtype=torch.float64), factor)
    assert noise.shift_level(there, 1 / factor).item() == pytest.approx(level, rel=1e-9)


def test_uniform_levels_use_every_discrete_timestep_alike():
    table = torch.linspace(0.03, 14.6, 1000)
    sampler = noise.NoiseLevelSampler("eps", "uniform", table)
    drawn = sampler.draw(200_000, (8, 8), torch.Generator().manual_seed(0))
    counts = torch.histc(drawn, bins=10, min=0.03, max=14.6)
    assert counts.min() > 19_000 and counts.max() < 21_000
    assert torch.isin(drawn, table).all()


def test_logit_normal_levels_have_the_papers_density():
    from scipy.stats import kstest, norm

    drawn = noise.NoiseLevelSampler("flow", "logit-normal").draw(20_000, (8, 8), torch.Generator().manual_seed(0))
    assert kstest(torch.logit(drawn.double()).numpy(), norm.cdf).pvalue > 0.001
    shifted = noise.NoiseLevelSampler("flow", "shifted").draw(20_000, (8, 8), torch.Generator().manual_seed(0))
    assert shifted.median().item() == pytest.approx(0.75, abs=0.01)  # 3 x 0.5 / (1 + 2 x 0.5)


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**7))
def test_the_noise_of_a_step_depends_on_seed_and_step_only(seed, step):
    first, again = seeding.step_generator(seed, step), seeding.step_generator(seed, step)
    next_step, other_seed = seeding.step_generator(seed, step + 1), seeding.step_generator((seed + 1) % 2**64, step)
    numbers = [torch.randn(4, generator=g) for g in (first, again, next_step, other_seed)]
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2]) and not torch.equal(numbers[0], numbers[3])


# Distributions of the levels -----------------------------------------------------------------------------------------


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.5), (1.0, 0.3)])
def test_logit_normal_levels_are_those_of_diffusers(mean, std):
    from diffusers.training_utils import compute_density_for_timestep_sampling

    how = NoiseConfig("logit-normal", logit_mean=mean, logit_std=std)
    theirs = compute_density_for_timestep_sampling("logit_normal", 1000, mean, std, generator=seeded())
    drawn = noise.NoiseLevelSampler.suited("flow", how, None).draw(1000, (8, 8), seeded())
    assert torch.allclose(drawn, theirs.clamp(1e-4, 1 - 1e-4), atol=1e-6)


@pytest.mark.parametrize("size", [(128, 128), (64, 64), (160, 96), (32, 32)])
def test_flux_levels_are_shifted_as_in_diffusers(size):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    mu = calculate_shift(size[0] // 2 * (size[1] // 2))
    s = torch.sigmoid(torch.randn(1000, generator=seeded()))
    theirs = math.exp(mu) / (math.exp(mu) + (1 / s - 1))  # FlowMatchEulerDiscreteScheduler.time_shift, exponential
    drawn = noise.NoiseLevelSampler.suited("flow", NoiseConfig("shifted"), None, FAMILIES["Flux"]).draw(1000, size, seeded())
    assert torch.allclose(drawn, theirs, atol=1e-5)


def test_an_own_shift_outranks_that_of_the_model():
    for family in (UNKNOWN, FAMILIES["Flux"]):
        drawn = noise.NoiseLevelSampler.suited("flow", NoiseConfig("shifted", shift=5), None, family).draw(
            20_000, (8, 8), seeded()
        )
        assert drawn.median().item() == pytest.approx(5 / 6, abs=0.01)  # 5 x 0.5 / (1 + 4 x 0.5)


def test_the_scale_of_the_sigmoid_is_the_spread_of_the_logit():
    from scipy.stats import kstest, norm

    drawn = noise.NoiseLevelSampler.suited("flow", NoiseConfig("sigmoid", sigmoid_scale=1.7), None).draw(20_000, (8, 8), seeded())
    assert kstest(torch.logit(drawn.double()).numpy(), norm(scale=1.7).cdf).pvalue > 0.001


@pytest.mark.parametrize(
    ("kind", "family", "distribution"),
    [("eps", "SD15", "uniform"), ("v", "SD20", "uniform"), ("flow", "SD3", "logit-normal"), ("flow", "Flux", "shifted")],
)
def test_auto_takes_what_suits_the_model(kind, family, distribution):
    assert noise.NoiseLevelSampler.suited(kind, NoiseConfig(), torch.ones(10), FAMILIES[family]).distribution == distribution


distributions = st.sampled_from(["auto", "uniform", "logit-normal", "sigmoid", "shifted"])
ranges = st.tuples(st.floats(0, 0.95), st.floats(0.01, 1)).map(lambda p: (p[0], min(1.0, p[0] + p[1])))


@settings(deadline=None)
@given(distributions, ranges, st.floats(-3, 3), st.floats(0.1, 3), st.integers(0, 2**32))
def test_levels_stay_within_their_range(levels, limits, mean, std, seed):
    how = NoiseConfig(levels, mean, std, std, lowest=limits[0], highest=limits[1])
    flow = noise.NoiseLevelSampler.suited("flow", how, None).draw(64, (16, 16), seeded(seed))
    assert flow.min() >= max(limits[0] - 1e-6, 1e-4) and flow.max() <= min(limits[1] + 1e-6, 1 - 1e-4)
    table = torch.arange(1000).float() + 1  # sigma is the timestep + 1
    steps = noise.NoiseLevelSampler.suited("eps", how, table).draw(64, (16, 16), seeded(seed)) - 1
    assert steps.min() >= math.floor(limits[0] * 1000 - 1e-3) and steps.max() <= math.ceil(limits[1] * 1000 + 1e-3)


@pytest.mark.parametrize("levels", ["uniform", "logit-normal", "sigmoid", "shifted"])
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_quantiles_divide_what_is_drawn_into_equal_parts(kind, levels):
    how = NoiseConfig(levels, logit_mean=0.3, sigmoid_scale=1.4, lowest=0.1, highest=0.9)
    sampler = noise.NoiseLevelSampler.suited(kind, how, torch.linspace(0.03, 14.6, 1000))
    middles = sampler.quantiles(8, (16, 16))
    drawn = sampler.draw(50_000, (16, 16), seeded())
    shares = (drawn[:, None] <= middles).float().mean(0)
    assert torch.allclose(shares, (torch.arange(8) + 0.5) / 8, atol=0.01)


# What the noise is ---------------------------------------------------------------------------------------------------


def test_without_settings_the_noise_is_plain_and_nothing_more_is_drawn():
    ours, plain = seeded(3), seeded(3)
    drawn = noise.make_noise((2, 4, 8, 8), NoiseConfig(), ours)
    assert torch.equal(drawn, torch.randn(2, 4, 8, 8, generator=plain))
    assert noise.perturbed(drawn, NoiseConfig(), ours) is drawn
    assert torch.equal(ours.get_state(), plain.get_state())


@pytest.mark.parametrize("shape", [(3, 4, 16, 24), (2, 16, 1, 8, 8)])
def test_the_offset_moves_every_channel_by_one_number(shape):
    plain = noise.make_noise(shape, NoiseConfig(), seeded())
    generator = seeded()
    torch.randn(shape, generator=generator)
    ones = [1] * (len(shape) - 2)
    by_hand = plain + 0.1 * torch.randn(*shape[:2], *ones, generator=generator)  # Guttenberg's formula
    assert torch.allclose(noise.make_noise(shape, NoiseConfig(offset=0.1), seeded()), by_hand, atol=1e-6)
    alike = noise.make_noise(shape, NoiseConfig(offset=0.1, offset_each_channel=False), seeded()) - plain
    assert torch.allclose(alike, alike[:, :1, :1].mean((-2, -1), keepdim=True).expand_as(alike), atol=1e-5)


def test_the_means_of_offset_noise_have_its_strength():
    means = noise.make_noise((4000, 4, 8, 8), NoiseConfig(offset=0.5), seeded()).mean((-2, -1))
    assert means.std().item() == pytest.approx(math.sqrt(0.5**2 + 1 / 64), rel=0.02)
    varied = noise.make_noise((4000, 4, 8, 8), NoiseConfig(offset=0.5, offset_random=True), seeded()).mean((-2, -1))
    assert varied.std().item() == pytest.approx(math.sqrt(0.5**2 / 3 + 1 / 64), rel=0.05)  # the mean of w^2 over 0..0.5


def neighbours(drawn: torch.Tensor, lag: int) -> float:
    """Correlation of cells that lie ``lag`` apart."""
    return (drawn[..., lag:] * drawn[..., :-lag]).mean().item() / drawn.square().mean().item()


def test_pyramid_noise_is_coarse_as_well_and_of_unit_size():
    coarse = noise.make_noise((16, 4, 64, 64), NoiseConfig(pyramid_iterations=6, pyramid_discount=0.8), seeded())
    assert torch.allclose(coarse.flatten(1).std(1), torch.ones(16), atol=1e-4)
    weak = noise.make_noise((16, 4, 64, 64), NoiseConfig(pyramid_iterations=6, pyramid_discount=0.5), seeded())
    plain = noise.make_noise((16, 4, 64, 64), NoiseConfig(), seeded())
    assert neighbours(coarse, 2) > neighbours(weak, 2) + 0.05 > neighbours(plain, 2) + 0.1
    assert abs(neighbours(plain, 2)) < 0.01


def test_one_layer_of_the_pyramid_has_the_size_of_the_noise_and_is_white():
    from scipy.stats import kstest

    white = noise.make_noise((1, 4, 64, 64), NoiseConfig(pyramid_iterations=1), seeded())
    assert kstest(white.flatten().double().numpy(), "norm").pvalue > 0.001 and abs(neighbours(white, 1)) < 0.03


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6), st.integers(1, 8), st.floats(0.05, 0.95), st.integers(1, 20), st.integers(1, 20), st.floats(0.0, 0.5)
)
def test_every_noise_is_finite_and_depends_on_its_generator_only(seed, layers, discount, height, width, gamma):
    for how in (NoiseConfig(pyramid_iterations=layers, pyramid_discount=discount), NoiseConfig(offset=0.2, perturbation=gamma)):
        found = []
        for global_seed in (0, 1):
            torch.manual_seed(global_seed)
            generator = seeding.step_generator(seed, 1)
            drawn = noise.make_noise((2, 3, height, width), how, generator)
            found.append(torch.cat([drawn, noise.perturbed(drawn, how, generator)]))
        assert torch.equal(found[0], found[1]) and found[0].isfinite().all()


def test_perturbation_adds_independent_noise_to_the_input():
    how = NoiseConfig(perturbation=0.1)
    generator = seeded()
    asked = noise.make_noise((64, 4, 32, 32), how, generator)
    added = noise.perturbed(asked, how, generator) - asked
    assert added.std().item() == pytest.approx(0.1, rel=0.01)
    assert abs((added * asked).mean().item()) < 1e-3


# Zero terminal SNR -----------------------------------------------------------------------------------------------------


def zero_snr_table() -> torch.Tensor:
    from comfy.model_sampling import ModelSamplingDiscrete

    return ModelSamplingDiscrete(zsnr=True).sigmas


def test_the_hosts_zero_snr_levels_are_those_of_diffusers_and_the_last_one_is_the_largest_that_is_drawn(comfyui):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod
    table = zero_snr_table()
    assert torch.allclose((1 / (table.square() + 1))[:-1], theirs[:-1].float(), rtol=1e-3, atol=1e-7)
    assert theirs[-1] == 0 and table[-1].item() == pytest.approx(noise.LARGEST_SIGMA, abs=0.1)


@pytest.mark.parametrize("last", ["as the host has it", "infinite"])
def test_nothing_becomes_nan_at_the_last_level_of_a_zero_snr_table(comfyui, last):
    table = zero_snr_table().clone()
    if last == "infinite":
        table[-1] = torch.inf
    sampler = noise.NoiseLevelSampler.suited("v", NoiseConfig(lowest=0.9995), table)
    sigma = sampler.draw(2, (8, 8), seeded())
    assert sigma.tolist() == pytest.approx([noise.LARGEST_SIGMA] * 2, abs=0.1)
    x0, e = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    # v = alpha e - sigma_t x0 with alpha 0 and sigma_t 1; what the host divides to is the noise alone.
    assert torch.allclose(noise.target("v", x0, e, sigma), -x0, atol=1e-2)
    x = noise.noisy("v", x0, e, sigma)
    assert torch.allclose(x / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1), e, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "distribution"), [("flow", "uniform"), ("flow", "logit-normal"), ("flow", "shifted"), ("eps", "uniform")]
)
def test_stratified_levels_lie_evenly_in_a_batch_and_over_the_steps(kind, distribution):
    """One level in each of the batch's parts; over 100 steps they follow their distribution more closely than by chance."""
    table = torch.linspace(0.03, 14.6, 1000) if kind == "eps" else None
    sampler = noise.NoiseLevelSampler(kind, distribution, table)
    parts = sampler.quantiles(4000, (8, 8))
    batches = [
        sampler.draw(4, (8, 8), seeding.step_generator(5, step), seeding.even_place(5, step)).sort().values for step in range(100)
    ]
    for batch in batches:
        for i, level in enumerate(batch):
            assert parts[1000 * i] <= level * 1.01 and level * 0.99 <= parts[min(3999, 1000 * (i + 1))]
    # The largest distance of the empirical distribution (Kolmogorov): by chance it would be about 0.87 / sqrt(400) = 0.043.
    found = torch.searchsorted(parts, torch.cat(batches).sort().values).double() / 4000
    assert (found - (torch.arange(400) + 0.5) / 400).abs().max() < 0.01
    single = [sampler.draw(1, (8, 8), seeding.step_generator(5, s), seeding.even_place(5, s)) for s in range(50, 150)]
    found = torch.searchsorted(parts, torch.cat(single).sort().values).double() / 4000
    assert (found - (torch.arange(100) + 0.5) / 100).abs().max() < 0.04, "wherever one begins; by chance about 0.087"


def test_which_picture_gets_which_level_is_drawn_and_depends_on_the_step_alone():
    sampler = noise.NoiseLevelSampler("flow", "uniform")

    def drawn(step):
        return sampler.draw(4, (8, 8), seeding.step_generator(1, step), seeding.even_place(1, step))

    assert torch.equal(drawn(7), drawn(7)) and len({int(drawn(step).argmax()) for step in range(30)}) == 4
    places = {seeding.even_place(seed, step) for seed in range(3) for step in range(50)}
    assert len(places) == 150 and all(0 <= place < 1 for place in places)
