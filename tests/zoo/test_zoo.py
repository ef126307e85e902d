"""Every family that the host loads, asked the same: is the gradient right, does it learn, does the file say what it learnt?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.config.sampling import SamplerSettings
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.families import family_named
from lora_atelier.training.network import lora_file, targets
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.objective import loss, noise
from lora_atelier.training.performance.checkpointing import checkpointed
from torch import Tensor

from .build import Animal, build
from .recipes import RECIPES, Recipe
from .slopes import named, slope

VARIANTS = {"SD 1.5 inpainting", "SDXL inpainting", "Flux Canny and Depth"}
"""Refused, though others of their family are trained."""


def refuses(recipe: Recipe) -> bool:
    return bool(family_named(recipe.family).refused) or recipe.name in VARIANTS


def params(which: list[Recipe]) -> list:
    return [pytest.param(r, id=r.name, marks=[pytest.mark.all_models] if r.large else []) for r in which]


@pytest.fixture(scope="module", params=params([r for r in RECIPES if not refuses(r)]))
def animal(request, comfyui) -> Iterator[Animal]:
    yield build(present(request.param))


def present(recipe: Recipe) -> Recipe:
    """``recipe``, if this host has its family."""
    import comfy.supported_models

    if not hasattr(comfy.supported_models, recipe.family):
        pytest.skip(f"this ComfyUI has no {recipe.family}")
    return recipe


def carriers(animal: Animal) -> dict[str, torch.nn.Module]:
    """Layers that the host can find in a LoRA file."""
    names = animal.model.lora_names()
    return {name: layer for name, layer in animal.model.layers().items() if name in names}


def new_adapter(animal: Animal, up: float = 0.05) -> Adapter:
    """An adapter on everything that learns, whose up-matrices are not zero, so that all its gradients are non-zero."""
    layers = carriers(animal)
    chosen = targets.choose(layers, "all linear")
    kept = family_named(animal.model.family).without_untrainable(layers)
    adapter = Adapter.fresh({name: chosen[name] for name in kept if name in chosen}, NetworkConfig(rank=2, alpha=2.0), 3)
    stream = torch.Generator().manual_seed(3)
    for branch in adapter.branches.values():
        branch.up.data = torch.randn(branch.up.shape, generator=stream) * up
    return adapter.to(animal.model.device)


def one_loss(animal: Animal, which: list[int], seed: int = 9, double: bool = False) -> Tensor:
    """The loss of those pictures, as the loop takes it: noise of ``seed``, caption number i for picture i.

    ``double`` takes the mean of squares in float64, for differences of losses.
    """
    model, family = animal.model, animal.model.prediction
    x0, sigma = animal.latents(2), animal.levels(2)
    e = model.noise_scale * torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0.device)
    x = noise.noisy(family, x0, e, sigma)[which]
    conditions = [model.condition(animal.conditioning(i), x[n : n + 1], animal.size) for n, i in enumerate(which)]
    answer = model.predict(x, sigma[which], conditions)
    wanted = noise.target(family, x0, e, sigma)[which]
    return (answer.double() - wanted.double()).square().mean() if double else loss.batch_loss(answer, wanted)


def one_number(animal: Animal, adapter: Adapter) -> float:
    with torch.no_grad(), animal.model.hold(), adapter.attached(animal.model.layers()):
        return one_loss(animal, [0]).item()


def picture(animal: Animal) -> Tensor:
    """What the stock sampler draws now."""
    text = animal.conditioning(1)
    positive = [[text["cond"], {"pooled_output": None, **{k: v for k, v in text.items() if k != "cond"}}]]
    with torch.inference_mode():
        return animal.model.sample(
            positive, positive, SamplerSettings("euler", "simple", 2, 1.0), latent_size=animal.recipe.cells, seed=5
        ).clone()


def gradients(animal: Animal, adapter: Adapter, which: list[int], again: bool = False, away: float = 0.0) -> dict[str, Tensor]:
    """By parameter; ``again`` is with recomputed blocks, ``away`` the share of them whose weights stay in main memory."""
    parameters = named(adapter)
    blocks = animal.model.blocks() if again else []
    with animal.model.hold(offload=away), adapter.attached(animal.model.layers()), checkpointed(blocks):
        found = torch.autograd.grad(one_loss(animal, which), list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Relative distance of two gradients, of every parameter where it is more than 1e-4."""
    far = {name: ((one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-9)).item() for name in one}
    return {name: value for name, value in far.items() if not value <= 1e-4}


def loss_slope(animal: Animal, adapter: Adapter, direction: dict[str, Tensor], step: float) -> float:
    with animal.model.hold(), adapter.attached(animal.model.layers()):
        return slope(lambda: one_loss(animal, [0], double=True).item(), adapter, direction, step)


def unaided(animal: Animal, adapter: Adapter, right: dict[str, Tensor]) -> str:
    """What happens to the gradient without what ``hold`` does about tensors changed in place and kernels without a backward."""
    from lora_atelier.training.host import in_place

    parameters = named(adapter)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(in_place, "READ", {})
        stack.enter_context(animal.model.hold())
        stack.enter_context(adapter.attached(animal.model.layers()))
        stack.enter_context(torch._C.DisableTorchFunction())
        try:
            found = torch.autograd.grad(one_loss(animal, [0]), list(parameters.values()), allow_unused=True)
        except RuntimeError as error:
            return "changed in place" if "inplace" in str(error) else "kernel without a backward"
    got = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}
    return "wrong gradient" if apart(right, got) else "right"


def test_the_gradient(animal, record_property):
    """Every target has one; it is the loss's slope; blocks computed twice or kept away and two pictures at once have the same."""
    picture(animal)  # a graph may have sampled before, and modules remember tensors of that pass
    adapter = new_adapter(animal)
    found = gradients(animal, adapter, [0])
    assert [name for name, g in found.items() if not (g.isfinite().all() and g.abs().sum() > 0)] == []

    parameters = named(adapter)
    direction = {name: g / g.norm() * parameters[name].detach().norm() for name, g in found.items()}
    expected = sum((g * direction[name]).sum().item() for name, g in found.items())
    step = min(0.05, 0.02 * one_number(animal, adapter) / expected)
    assert loss_slope(animal, adapter, direction, step) == pytest.approx(expected, rel=1e-3)

    assert apart(found, gradients(animal, adapter, [0], again=True)) == {}
    assert apart(found, gradients(animal, adapter, [0], again=True, away=0.5)) == {}
    both, other = gradients(animal, adapter, [0, 1]), gradients(animal, adapter, [1])
    assert apart({name: (g + other[name]) / 2 for name, g in found.items()}, both) == {}

    record_property("unaided", unaided(animal, adapter, found))
    record_property("family", animal.model.family)
    record_property("prediction", animal.model.prediction)
    record_property("frames", animal.model.frames)
    record_property("targets", len(adapter.branches))
    record_property(
        "left_out", len(layers := carriers(animal)) - len(family_named(animal.model.family).without_untrainable(layers))
    )
    record_property("loads", animal.loaded)
    record_property("megabytes", round(sum(p.nbytes for p in animal.model.base.diffusion_model.parameters()) / 1e6))


@pytest.mark.parametrize("recipe", params([r for r in RECIPES if family_named(r.family).films and not refuses(r)]))
def test_the_gradient_of_a_film(recipe, comfyui):
    """Three frames of the latent."""
    film = dataclasses.replace(build(present(recipe)), length=3)
    adapter = new_adapter(film)
    found = gradients(film, adapter, [0])
    assert [name for name, g in found.items() if not (g.isfinite().all() and g.abs().sum() > 0)] == []
    direction = {name: g / g.norm() * named(adapter)[name].detach().norm() for name, g in found.items()}
    expected = sum((g * direction[name]).sum().item() for name, g in found.items())
    step = min(0.05, 0.02 * one_number(film, adapter) / expected)
    assert loss_slope(film, adapter, direction, step) == pytest.approx(expected, rel=1e-3)
    assert apart(found, gradients(film, adapter, [0], again=True)) == {}


def test_it_learns(animal):
    adapter = new_adapter(animal, up=0.0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    with animal.model.hold(), adapter.attached(animal.model.layers()):
        losses = []
        for _ in range(20):
            value = one_loss(animal, [0, 1])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        losses.append(one_loss(animal, [0, 1]).item())
    assert losses[-1] < 0.98 * losses[0]


def test_the_file_draws_what_the_live_adapter_draws(animal, caplog):
    adapter = new_adapter(animal)
    before = picture(animal)
    assert before.isfinite().all()
    with adapter.attached(animal.model.layers()):
        live = picture(animal)
    tensors = lora_file.to_file(adapter, animal.model.lora_names(), animal.model.family, torch.float32)
    with caplog.at_level("WARNING"), torch.inference_mode():
        patched, _ = animal.model.with_lora(None, tensors, 1.0)
    assert "not loaded" not in caplog.text.lower()
    stock = picture(dataclasses.replace(animal, model=type(animal.model)(patched)))
    assert (live - before).norm() > 1e-2 * before.norm()
    assert (stock - live).norm() < 2e-2 * (live - before).norm()
    assert torch.equal(picture(animal), before)


@pytest.mark.parametrize("recipe", params([r for r in RECIPES if refuses(r)]))
def test_what_cannot_be_trained_rightly_is_refused_in_a_sentence(recipe, comfyui):
    with pytest.raises(AtelierError, match=r"^model: (this )?\w+ (is|predicts|makes|overwrites) .*\.$"):
        build(present(recipe)).model.check()


def test_what_is_trained_is_not_refused(animal):
    animal.model.check()
    assert animal.model.blocks(), "or less memory could not be made do with"


@pytest.mark.skipif("ATELIER_COMFYUI" in os.environ, reason="another host may insist on the published sizes")
def test_the_loader_recognises_the_file(animal):
    assert animal.loaded == animal.recipe.loads
    assert animal.model.family == animal.recipe.family
