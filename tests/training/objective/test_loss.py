"""The loss against numbers worked out by hand, torch and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training import seeding
from lora_atelier.training.config import LossConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.objective import loss

PREDICTION = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
WANTED = torch.zeros(1, 1, 2, 2)
"""Squares 1, 4, 9, 16."""
LEFT = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])


def test_without_a_mask_it_is_the_mean_square():
    assert loss.batch_loss(PREDICTION, WANTED).item() == 7.5


def test_a_mask_weighs_by_its_own_mean():
    # Weights 1, 0, 1, 0 over their mean 0.5: 2, 0, 2, 0; (2 x 1 + 2 x 9) / 4.
    assert loss.batch_loss(PREDICTION, WANTED, LEFT).item() == 5.0


def test_the_floor_lets_the_outside_count_a_little():
    # Weights 1, 0.25, 1, 0.25 over their mean 0.625: (1 + 1 + 9 + 4) / 4 / 0.625.
    assert loss.batch_loss(PREDICTION, WANTED, LEFT, 0.25).item() == pytest.approx(6.0)


def test_a_white_mask_changes_nothing_and_a_black_one_with_a_floor_neither():
    for mask, floor in ((torch.ones(1, 1, 2, 2), 0.1), (torch.zeros(1, 1, 2, 2), 0.1)):
        assert loss.batch_loss(PREDICTION, WANTED, mask, floor).item() == pytest.approx(7.5)


def test_a_black_mask_without_a_floor_is_no_loss_and_no_nan():
    assert loss.batch_loss(PREDICTION, WANTED, torch.zeros(1, 1, 2, 2)).item() == 0


def test_each_picture_is_weighed_by_its_own_mask_in_every_channel_and_frame():
    squares = torch.tensor([[1.0, 4.0, 9.0, 16.0]]).sqrt().reshape(1, 1, 1, 2, 2).expand(2, 3, 1, 2, 2)
    masks = torch.cat([LEFT, 1 - LEFT])
    # As above for the left columns; the right ones give (2 x 4 + 2 x 16) / 4.
    assert loss.per_sample_loss(squares, torch.zeros_like(squares), masks).tolist() == [5.0, 10.0]


def test_the_weight_of_a_subset_scales_its_loss():
    assert loss.batch_loss(PREDICTION, WANTED, weight=0.5).item() == 3.75
    assert loss.batch_loss(PREDICTION, WANTED, LEFT, 0.0, 0.5).item() == 2.5


def normalised_areas(prediction, wanted, before, mask, floor, weight):
    """OneTrainer's masked losses with prior, areas normalised, picture by picture."""
    clamped = mask.clamp(floor, 1)
    own = (prediction - wanted) ** 2 * clamped / clamped.mean((1, 2, 3), keepdim=True)
    rest = 1 - clamped
    prior = (prediction - before) ** 2 * rest * weight / rest.mean((1, 2, 3), keepdim=True)
    return (own + prior).mean((1, 2, 3))


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_outside_the_mask_the_answer_before_training_is_wanted(floor):
    g = torch.Generator().manual_seed(3)
    prediction, wanted, before = (torch.randn(2, 4, 6, 5, generator=g) for _ in range(3))
    mask = torch.rand(2, 1, 6, 5, generator=g).round(decimals=1)
    config = LossConfig(mask_preservation=0.7)
    found = loss.per_sample_loss(prediction, wanted, mask, floor, config, before=before)
    assert torch.allclose(found, normalised_areas(prediction, wanted, before, mask, floor, 0.7), atol=1e-5)
    film = loss.per_sample_loss(*(x.unsqueeze(2) for x in (prediction, wanted)), mask, floor, config, before=before.unsqueeze(2))
    assert torch.allclose(film, found, atol=1e-6)
    huber = LossConfig("huber", huber_schedule="constant", huber_threshold=0.5, weighting="min-SNR", mask_preservation=0.7)
    sigma = torch.tensor([0.4, 3.0])
    whole = loss.batch_loss(prediction, wanted, mask, floor, 0.5, "eps", sigma, huber, before)

    def forgiving(error):
        return 2 * 0.5 * ((error**2 + 0.25).sqrt() - 0.5)

    clamped = mask.clamp(floor, 1)
    own = forgiving(prediction - wanted) * clamped / clamped.mean((1, 2, 3), keepdim=True)
    prior = forgiving(prediction - before) * (1 - clamped) * 0.7 / (1 - clamped).mean((1, 2, 3), keepdim=True)
    by_level = (5 * sigma**2).clamp_max(1)
    assert whole.item() == pytest.approx(0.5 * ((own + prior).mean((1, 2, 3)) * by_level).mean().item(), rel=1e-5)


def test_a_white_mask_has_no_outside_and_a_black_one_is_nothing_else():
    config, before = LossConfig(mask_preservation=2.0), torch.full((1, 1, 2, 2), 1.0)
    white, black = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert loss.batch_loss(PREDICTION, WANTED, white, 0.0, config=config, before=before).item() == 7.5
    # Squares of the distance from 1: 0, 1, 4, 9.
    assert loss.batch_loss(PREDICTION, WANTED, black, 0.0, config=config, before=before).item() == 2 * 3.5


# Huber ---------------------------------------------------------------------------------------------------------------

errors = st.floats(-50, 50)
thresholds = st.floats(0.01, 1)


def of_error(kind: str, error: float, c: float) -> float:
    e = torch.tensor([[error]], dtype=torch.float64)
    return loss.element_loss(e, LossConfig(kind), torch.tensor([c], dtype=torch.float64)).item()


@given(errors, thresholds)
def test_pseudo_huber_stays_beside_torchs_huber(error, c):
    d = torch.tensor(error, dtype=torch.float64)
    zero = torch.zeros_like(d)
    # Both are d^2 near 0; far out the two differ by c^2 in 2 c |d|, and in smooth-l1 by c.
    assert -1e-9 <= 2 * F.huber_loss(d, zero, delta=c).item() - of_error("huber", error, c) <= c * c + 1e-9
    assert -1e-9 <= 2 * F.smooth_l1_loss(d, zero, beta=c).item() - of_error("smooth-l1", error, c) <= c + 1e-9


@given(errors, thresholds)
def test_pseudo_huber_is_the_formula_of_the_established_trainers(error, c):
    assert of_error("huber", error, c) == pytest.approx(2 * c * (math.hypot(error, c) - c), rel=1e-6, abs=1e-9)
    assert of_error("smooth-l1", error, c) == pytest.approx(2 * (math.hypot(error, c) - c), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("c", "error", "wanted"), [(0.1, 1e-4, 1e-8), (0.5, 100.0, 99.50125)])
def test_pseudo_huber_is_square_near_zero_and_linear_far_out(c, error, wanted):
    assert of_error("huber", error, c) == pytest.approx(wanted, rel=1e-5)


def test_the_scheduled_threshold_by_hand():
    config = LossConfig("huber", huber_threshold=0.1)
    # (1 - 0.1) / (1 + sigma)^2 + 0.1
    assert loss.huber_thresholds("eps", torch.tensor([0.0, 1.0, 14.0]), config).tolist() == pytest.approx([1.0, 0.325, 0.104])
    # The same noise-to-signal ratios in a flow model: sigma / (1 - sigma) = 0, 1, 14.
    assert loss.huber_thresholds("flow", torch.tensor([0.0, 0.5, 14 / 15]), config).tolist() == pytest.approx([1.0, 0.325, 0.104])
    constant = LossConfig("huber", "constant", 0.2)
    assert loss.huber_thresholds("v", torch.tensor([0.1, 9.0]), constant).tolist() == pytest.approx([0.2, 0.2])


# Weights of the levels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "weighting", "ratios", "weights"),
    [
        ("eps", "min-SNR", [20.0, 5.0, 1.0, 0.01], [0.25, 1.0, 1.0, 1.0]),  # min(S, 5) / S
        ("v", "min-SNR", [20.0, 4.0, 1.0, 0.01], [5 / 21, 0.8, 0.5, 0.01 / 1.01]),  # min(S, 5) / (S + 1)
        ("eps", "debiased", [4.0, 0.25, 1e6], [0.5, 2.0, 1000**-0.5]),  # 1 / sqrt(min(S, 1000))
        ("v", "debiased", [4.0, 0.25, 1e6], [0.2, 0.8, 1 / 1001]),  # 1 / (min(S, 1000) + 1)
    ],
)
def test_weights_of_known_signal_to_noise_ratios(kind, weighting, ratios, weights):
    sigma = torch.tensor(ratios, dtype=torch.float64).rsqrt()
    found = loss.level_weights(kind, sigma, LossConfig(weighting=weighting))
    assert found.tolist() == pytest.approx(weights, rel=1e-6)


def test_min_snr_weights_are_those_from_diffusers_ratios():
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    t = torch.arange(0, 1000, 7)
    alphas = scheduler.alphas_cumprod[t]
    sigma, ratio = ((1 - alphas) / alphas).sqrt(), compute_snr(scheduler, t)
    assert torch.allclose(loss.snr("eps", sigma), ratio, rtol=1e-3)
    # As in diffusers' training scripts: min(S, 5) over S for epsilon and over S + 1 for v.
    least = torch.stack([ratio, torch.full_like(ratio, 5.0)]).min(0).values
    config = LossConfig(weighting="min-SNR")
    assert torch.allclose(loss.level_weights("eps", sigma, config), least / ratio, rtol=1e-3)
    assert torch.allclose(loss.level_weights("v", sigma, config), least / (ratio + 1), rtol=1e-3)


@pytest.mark.parametrize(("ours", "theirs"), [("sigma-sqrt", "sigma_sqrt"), ("cosmap", "cosmap"), ("none", "none")])
def test_flow_weights_are_those_of_diffusers(ours, theirs):
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigma = torch.linspace(0.01, 0.99, 50)
    expected = compute_loss_weighting_for_sd3(theirs, sigma)
    assert torch.allclose(loss.level_weights("flow", sigma, LossConfig(weighting=ours)), expected, rtol=1e-5)


@given(st.sampled_from(["eps", "v"]), st.sampled_from(["min-SNR", "debiased"]), st.floats(1e-3, 5000), st.floats(0.01, 100))
def test_weights_are_positive_and_finite_also_without_any_signal(kind, weighting, sigma, gamma):
    found = loss.level_weights(kind, torch.tensor([sigma]), LossConfig(weighting=weighting, snr_gamma=gamma))
    assert found.isfinite().all() and (found > 0).all()
    if weighting == "min-SNR":
        assert found.item() <= 1


@pytest.mark.parametrize(
    ("kind", "weighting"), [("flow", "min-SNR"), ("flow", "debiased"), ("eps", "cosmap"), ("v", "sigma-sqrt")]
)
def test_a_weighting_of_another_kind_of_model_is_refused(kind, weighting):
    with pytest.raises(AtelierError, match=rf"weighting: {weighting} is not for {kind} models.*Choose none"):
        loss.check_weighting(kind, LossConfig(weighting=weighting))


# All together --------------------------------------------------------------------------------------------------------


def test_the_order_is_huber_mask_space_level_subset_batch():
    config = LossConfig("huber", "constant", 0.5, "min-SNR")
    prediction, wanted = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    mask = torch.rand(3, 1, 4, 4)
    sigma = torch.tensor([0.1, 0.3, 2.0])
    parts = []
    for i in range(3):  # one picture at a time, in plain numbers
        d = (prediction[i] - wanted[i]).double()
        each = 2 * 0.5 * ((d * d + 0.25).sqrt() - 0.5)
        weights = mask[i].double().clamp(min=0.2)
        each = each * (weights / weights.mean())
        s = 1 / sigma[i].item() ** 2
        parts.append(each.mean().item() * min(s, 5) / s)
    found = loss.batch_loss(prediction, wanted, mask, 0.2, 0.7, "eps", sigma, config)
    assert found.item() == pytest.approx(0.7 * sum(parts) / 3, rel=1e-5)


def test_a_loss_that_needs_the_levels_asks_for_them():
    for config in (LossConfig("huber"), LossConfig(weighting="cosmap")):
        with pytest.raises(ValueError, match="noise levels"):
            loss.batch_loss(PREDICTION, WANTED, config=config)


@pytest.mark.parametrize("kind", ["huber", "smooth-l1"])
def test_the_gradient_of_a_perfect_answer_is_zero_and_finite(kind):
    prediction = torch.zeros(2, 1, 2, 2, requires_grad=True)
    loss.batch_loss(prediction, torch.zeros(2, 1, 2, 2), sigma=torch.tensor([0.1, 9.0]), config=LossConfig(kind)).backward()
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize("weighting", ["none", "min-SNR", "debiased"])
@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_a_real_v_model_learns_at_the_last_level_of_a_zero_snr_schedule(tiny, kind, weighting):
    """The stock node ModelSamplingDiscrete rescales the levels; the last one holds nothing but noise."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
    from lora_atelier.training import host
    from lora_atelier.training.config import NetworkConfig, NoiseConfig
    from lora_atelier.training.network import targets
    from lora_atelier.training.network.adapter import Adapter
    from lora_atelier.training.objective import noise

    t = tiny("sdxl_v_unet")
    model = host.Model(ModelSamplingDiscrete().patch(t.model.patcher, "v_prediction", True)[0])
    levels = noise.NoiseLevelSampler.suited(model.prediction, NoiseConfig(lowest=0.9995), model.sigmas)
    generator = seeding.step_generator(0, 0)
    layers = targets.choose(model.layers(), "attention")
    adapter = Adapter.fresh(layers, NetworkConfig(rank=2, alpha=2), 0).to(model.device)
    x0 = torch.randn(1, 4, 8, 8, generator=generator).to(model.device)
    sigma = levels.draw(1, (8, 8), generator).to(model.device)
    assert sigma.item() > 4000
    with model.hold(), adapter.attached(layers):
        e = noise.make_noise(x0.shape, NoiseConfig(offset=0.1), generator).to(model.device)
        x = noise.noisy("v", x0, e, sigma)
        size = {"width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64}
        answer = model.predict(x, sigma, [model.condition(t.conditioning(0), x, size)])
        wanted = noise.target("v", x0, e, sigma)
        found = loss.batch_loss(answer, wanted, None, 0.0, 1.0, "v", sigma, LossConfig(kind, weighting=weighting))
        found.backward()
    assert found.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())
