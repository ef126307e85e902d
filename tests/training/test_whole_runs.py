"""Fifty steps against diffusers + PEFT: the same weights, pictures, noise and levels give the same losses and the same LoRA.

The reference is written plainly, from public parts of diffusers, PEFT and torch. It shares with the code under test only what is
drawn by lot (order, noise, levels, the adapter's first weights) and what is encoded (latents as the VAE gave them, texts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from lora_atelier.training import host, seeding
from lora_atelier.training.config import LengthConfig, NetworkConfig, OptimizerConfig, TrainingConfig
from lora_atelier.training.dataset.cache import CACHE_LIMIT, TensorCache
from lora_atelier.training.dataset.encoded import EncodedDataset
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.scope import adaptable_layers, trained_layers
from lora_atelier.training.objective import noise
from torch import Tensor, nn

from .. import diffusers_twins
from .test_job import dataset, fresh_folders, go, recipe  # noqa: F401

STEPS, RANK, ALPHA, RATE = 50, 4, 2.0, 1e-3
Pair = tuple[nn.Module, nn.Module]
"""PEFT's A and B of one layer."""


@dataclass(frozen=True)
class Reference:
    """A family as diffusers has it."""

    model: nn.Module
    layers: dict[str, list[str]]
    """For each of our layers those of diffusers that it is made of, one below the other."""
    scaled: Callable[[Tensor], Tensor]
    """Latents as the VAE gave them -> as the model sees them."""
    ask: Callable[[nn.Module, Tensor, Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, Tensor]]
    """(model, x0, noise, level drawn, text) -> (what the model answers, what is wanted)."""


def sd15(t) -> Reference:
    import comfy.utils
    from diffusers import DDPMScheduler

    model = diffusers_twins.sd15()
    names = comfy.utils.unet_to_diffusers(t.model.base.model_config.unet_config)
    weights = t.model.base.diffusion_model.state_dict()
    wanted = model.state_dict().keys()
    model.load_state_dict({theirs: weights[ours].float() for theirs, ours in names.items() if theirs in wanted})
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, beta_schedule="scaled_linear")
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()

    def ask(model: nn.Module, x0: Tensor, e: Tensor, sigma: Tensor, text: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        steps = (table.to(sigma.device)[None] - sigma[:, None]).abs().argmin(1)
        answer = model(scheduler.add_noise(x0, e, steps), steps, encoder_hidden_states=text["cond"]).sample
        return answer, e

    ours = {k.removesuffix(".weight"): [v.removesuffix(".weight")] for v, k in names.items() if k.endswith(".weight")}
    return Reference(model, ours, lambda latents: latents * 0.18215, ask)


def sd3(t) -> Reference:
    weights = {name: tensor.float().clone() for name, tensor in t.model.base.diffusion_model.state_dict().items()}
    model = diffusers_twins.sd3(weights)

    def ask(model: nn.Module, x0: Tensor, e: Tensor, sigma: Tensor, text: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        share = sigma.view(-1, 1, 1, 1)
        answer = model((1 - share) * x0 + share * e, text["cond"], text["pooled_output"], 1000 * sigma).sample
        return answer, e - x0

    return Reference(model, diffusers_twins.sd3_layers(), lambda latents: (latents - 0.0609) * 1.5305, ask)


REFERENCES = {"sd15": sd15, "sd3": sd3}


def config_of(name: str) -> TrainingConfig:
    return recipe(
        name, network=NetworkConfig(rank=RANK, alpha=ALPHA), precision="fp32", length=LengthConfig(max_steps=STEPS),
        optimizer=OptimizerConfig(learning_rate=RATE, schedule="cosine"),
    )  # fmt: skip


class Drawn:
    """What the run under test draws and encodes, step by step, through the public functions."""

    def __init__(self, t, pictures, config: TrainingConfig):
        self.config, self.plan = config, Plan(pictures, config.seed)
        self.encoded = EncodedDataset(pictures, config.seed, t.codec, t.text, TensorCache(host.cache_folder(), CACHE_LIMIT))
        self.levels = noise.NoiseLevelSampler.suited(t.model.prediction, config.noise, t.model.sigmas)
        layers, _ = adaptable_layers(t.model, None)
        self.device = t.model.device
        self.adapter = Adapter.fresh(trained_layers(layers, config), config.network, config.seed).to(self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]]:
        """(latents, noise, levels, text) of every step."""
        for step in range(STEPS):
            batch = self.plan.batch(step)
            latents, _, _ = self.encoded.latents(batch)
            stream = seeding.step_generator(self.config.seed, step)
            sigma = self.levels.draw(len(latents), (latents.shape[-2], latents.shape[-1]), stream)
            e = noise.make_noise(latents.shape, self.config.noise, stream)
            texts = self.encoded.conditionings(batch)
            text = {key: torch.cat([text[key] for text in texts]).to(self.device) for key in texts[0]}
            yield latents.to(self.device), e.to(self.device), sigma.to(self.device), text


def with_peft(reference: Reference, adapter: Adapter) -> dict[str, list[Pair]]:
    """Puts PEFT's layers into the reference model, at the adapter's start; returns them under our names.

    Where one of our layers is several in diffusers (query, key and value), these share one A, as the single layer has it, and B
    lies below B: the very same function of the same numbers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = {ours: theirs for ours, theirs in reference.layers.items() if ours in adapter.branches}
    assert names.keys() == adapter.branches.keys()
    targets = [name for several in names.values() for name in several]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets), reference.model)
    out = {}
    for ours, several in names.items():
        layers = [reference.model.get_submodule(name) for name in several]
        shared = layers[0].lora_A["default"]
        shared.weight.data = adapter.branches[ours].down.data.clone()
        for layer in layers:
            layer.lora_A["default"] = shared
        out[ours] = [(shared, layer.lora_B["default"]) for layer in layers]
    return out


def train_plainly(reference: Reference, drawn: Drawn) -> tuple[list[float], dict[str, tuple[Tensor, Tensor]]]:
    """The losses, and (A, B) of every layer at the end."""
    from diffusers.optimization import get_scheduler

    pairs = with_peft(reference, drawn.adapter)
    reference.model.to(drawn.device)
    parameters = [p for p in reference.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=STEPS)
    losses = []
    for latents, e, sigma, text in drawn:
        answer, wanted = reference.ask(reference.model, reference.scaled(latents), e, sigma, text)
        loss = F.mse_loss(answer.float(), wanted.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {
        name: (several[0][0].weight.detach().cpu(), torch.cat([b.weight.detach().cpu() for _, b in several]))
        for name, several in pairs.items()
    }


@pytest.mark.parametrize("name", REFERENCES)
def test_fifty_steps_are_those_of_diffusers_and_peft(tiny, dataset, name):  # noqa: F811
    t, config = tiny(name), config_of(name)
    trained = go(t, dataset, config)
    with torch.inference_mode(False):
        reference, drawn = REFERENCES[name](t), Drawn(t, dataset, config)
        assert_same_answer(t, reference, drawn)
        losses, weights = train_plainly(reference, drawn)

    assert len(losses) == STEPS and max(losses) < 1e3
    assert trained.losses == pytest.approx(losses, rel=1e-4)
    file_names = {layer: next(n for n in names if n + ".alpha" in trained.tensors) for layer, names in drawn_names(t, weights)}
    assert {n.rsplit(".lora_", 1)[0].removesuffix(".alpha") for n in trained.tensors} == set(file_names.values())
    for layer, (a, b) in weights.items():
        down, up = (trained.tensors[f"{file_names[layer]}.lora_{part}.weight"] for part in ("down", "up"))
        first = drawn.adapter.branches[layer].down.detach().cpu()
        for ours, theirs, start in ((down, a, first), (up, b, torch.zeros_like(b))):
            # Against how far they have moved, which is the stricter measure.
            assert (ours - theirs).norm() <= 1e-3 * (theirs - start).norm() + 1e-12, layer
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-12, layer
    assert sum(bool(b.norm() > 0) for _, b in weights.values()) >= 0.8 * len(weights)


def drawn_names(t, weights) -> Iterator[tuple[str, list[str]]]:
    known = t.model.lora_names()
    return ((layer, known[layer]) for layer in weights)


def assert_same_answer(t, reference: Reference, drawn: Drawn) -> None:
    """Before anything is trained: the converted model is the host's."""
    latents, e, sigma, text = next(iter(drawn))
    reference.model.to(drawn.device)
    with t.model.hold(), torch.no_grad():
        x0 = t.model.latents_in(latents)
        assert torch.allclose(x0, reference.scaled(latents), rtol=1e-5, atol=1e-6)
        x = noise.noisy(t.model.prediction, x0, e, sigma)
        each = [{key: value[i : i + 1] for key, value in text.items()} for i in range(len(x))]
        ours = t.model.predict(x, sigma, [t.model.condition(one, x[i : i + 1], {}) for i, one in enumerate(each)])
        theirs, _ = reference.ask(reference.model, x0, e, sigma, text)
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
