"""The fixed loss on real tiny models: equal when the adapter is equal, whatever else happens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lora_atelier.training import host, job
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    NoiseConfig,
    OptimizerConfig,
    SubsetConfig,
    TrainingConfig,
)
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.cache import TensorCache
from lora_atelier.training.dataset.encoded import EncodedDataset, size_conditioning, work_of
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.evaluation.validation import LEVELS, Validation, validate
from lora_atelier.training.network import targets
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.objective import noise
from lora_atelier.training.seeding import fixed_noise
from lora_atelier.training.session import Session
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory, comfyui):
    """Six pictures in two sizes with captions."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(6):
        width = 96 if i < 2 else 64
        pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((width, 64), Image.Resampling.BICUBIC).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"red, round {i % 2}", encoding="utf-8")
    return path


class Case:
    """Everything that ``validate`` needs around one tiny model."""

    def __init__(self, t, folder, cache, seed=3, **values):
        values = {"resolution": 64, "bucket_step": 32, "batch_size": 2, "validation_share": 0.34, **values}
        self.model = t.model
        self.plan = Plan(Dataset(scan.scan(folder, SubsetConfig("input/x", **values))), seed)
        self.layers = targets.choose(t.model.layers(), "attention")
        names = t.model.lora_names()
        self.layers = {name: layer for name, layer in self.layers.items() if name in names}
        self.adapter = Adapter.fresh(self.layers, NetworkConfig(rank=2, alpha=2), 0).to(t.model.device)
        self.levels = noise.NoiseLevelSampler.suited(t.model.prediction, NoiseConfig(), t.model.sigmas)
        self.encoded = EncodedDataset(self.plan.dataset, seed, t.codec, t.text, TensorCache(cache, 2**30))
        config = TrainingConfig("case", seed=seed)
        self.session = Session(t.model, None, self.layers, self.adapter, self.levels, self.encoded, self.plan, config)
        with torch.inference_mode(False):
            self.encoded.prepare(work_of(self.plan, 1), lambda done: None)

    def __call__(self, epoch=1) -> Validation:
        with self.model.hold(), self.adapter.attached(self.layers):
            return validate(self.session, epoch)

    def learn(self) -> None:
        with torch.no_grad():
            for name, tensor in self.adapter.state().items():
                if name.endswith(".up"):
                    tensor += 0.05


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_it_changes_with_the_adapter_and_with_nothing_else(tiny, folder, cache, name):
    case = Case(tiny(name), folder, cache, flip=True, shuffle_captions=True)
    first = case()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert case() == first
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn from the global generator"
    assert np.isfinite([first.held_out, first.training]).all()
    other = Case(tiny(name), folder, cache, seed=4, flip=True, shuffle_captions=True)
    assert other() == first, "the run's seed decides neither pictures nor noise nor captions"
    case.learn()
    moved = case(2)
    assert moved.epoch == 2 and moved.held_out != first.held_out and moved.training != first.training
    assert all(parameter.grad is None for parameter in case.adapter.parameters())


def test_the_batch_size_does_not_matter(tiny, folder, cache):
    one, three = (Case(tiny("sd3"), folder, cache, batch_size=size)() for size in (1, 3))
    assert one.held_out == pytest.approx(three.held_out, rel=1e-4) and one.training == pytest.approx(three.training, rel=1e-4)


def test_it_is_the_mean_square_over_pictures_and_levels(tiny, folder, cache):
    """The same sum, one picture and one level at a time, with the flow formulas written out."""
    t = tiny("sd3")
    case = Case(t, folder, cache)
    found = []
    with t.model.hold(), torch.no_grad():
        for batch in case.plan.validation:
            latents, views, _ = case.encoded.latents(batch)
            for i, index in enumerate(batch.samples):
                sample = case.plan.dataset.subsets[0].samples[index]
                x0 = t.model.latents_in(latents[i : i + 1].to(t.model.device))
                text = case.encoded.text(sample.caption)
                for level in range(LEVELS):
                    # logit-normal levels at the middles of eight equally likely parts
                    sigma = 1 / (1 + math.exp(-torch.special.ndtri(torch.tensor((level + 0.5) / LEVELS)).item()))
                    e = fixed_noise(sample.key, level, x0.shape).to(x0.device)
                    x = (1 - sigma) * x0 + sigma * e
                    conditions = [t.model.condition(text, x, size_conditioning(views[i]))]
                    answer = t.model.predict(x, torch.tensor([sigma], device=x.device), conditions)
                    found.append((answer - (e - x0)).square().mean().item())
    assert len(found) == 2 * LEVELS
    assert case().held_out == pytest.approx(sum(found) / len(found), rel=1e-4)


def test_without_held_out_pictures_the_training_share_is_still_measured(tiny, folder, cache):
    result = Case(tiny("sd3"), folder, cache, validation_share=0.0)()
    assert result.held_out is None and result.training > 0


def test_noise_differs_between_pictures_and_levels_only():
    noises = [fixed_noise(key, level, (1, 4, 8, 8)) for key in ("a", "b") for level in (0, 1)]
    assert torch.equal(noises[0], fixed_noise("a", 0, (1, 4, 8, 8)))
    assert all(not torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


@pytest.mark.parametrize(
    ("name", "how", "loss"),
    [
        ("sd15", NoiseConfig(offset=0.1, perturbation=0.1), LossConfig("huber", weighting="min-SNR")),
        ("sd3", NoiseConfig("sigmoid", pyramid_iterations=6), LossConfig("smooth-l1", "constant", weighting="cosmap")),
    ],
)
def test_a_run_with_every_kind_of_noise_and_loss_learns_other_numbers(tiny, folder, tmp_path, monkeypatch, name, how, loss):
    monkeypatch.setattr(host, "runs_folder", lambda: tmp_path / "runs")
    monkeypatch.setattr(host, "loras_folder", lambda: tmp_path / "loras")
    t = tiny(name)
    pictures = Dataset(scan.scan(folder, SubsetConfig("input/x", resolution=64, bucket_step=32, batch_size=3)))

    def losses(**values) -> list[float]:
        config = TrainingConfig(
            "a", network=NetworkConfig(2, 1.0, "attention"), optimizer=OptimizerConfig(learning_rate=1e-3),
            length=LengthConfig(max_steps=3), seed=1, **values,
        )  # fmt: skip
        preview = job.Preview("", "", 0, 1.0, "euler", "normal", 0)
        with torch.inference_mode():
            return job.run_training(t.model, t.text, t.codec, pictures, config, preview=preview, graph={}).losses

    plain, chosen = losses(), losses(noise=how, loss=loss)
    assert len(chosen) == 3 and np.isfinite(chosen).all()
    assert all(a != b for a, b in zip(plain, chosen, strict=True))
