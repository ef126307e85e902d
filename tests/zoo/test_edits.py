"""Models that edit pictures: which families read control pictures, and whether the gradient is right where they do."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.families import family_named
from lora_atelier.training.network import targets
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.objective import loss, noise
from lora_atelier.training.tensors import references
from torch import Tensor

from .build import Animal, build
from .recipes import RECIPES
from .slopes import named, slope
from .test_zoo import carriers, params, present, refuses

UNLIKE = {"ZImage", "ZImagePixelSpace", "Lumina2", "HiDreamO1"}
"""Families whose networks read control pictures only beside texts of their own, which their nodes make, or as pixels."""
EDITS = [recipe for recipe in RECIPES if family_named(recipe.family).edits and not refuses(recipe)]


@pytest.fixture(scope="module", params=params(EDITS))
def editor(request, comfyui) -> Animal:
    return build(present(request.param))


def controls(animal: Animal, count: int = 2) -> list[Tensor]:
    """Latents of control pictures, of which the second is of another shape."""
    stream = torch.Generator().manual_seed(21)
    like = animal.latents(1)
    first = torch.randn(like.shape, generator=stream)
    return [one.to(like.device) for one in (first, first[..., :-2].flip(-1).contiguous())[:count]]


def told(animal: Animal, number: int, latents: list[Tensor]) -> dict[str, object]:
    method = family_named(animal.model.family).edit_method
    return {
        **animal.conditioning(number), **references.numbered(latents), **({references.METHOD: method} if method else {}),
    }  # fmt: skip


def answer(animal: Animal, texts: list[dict[str, object]]) -> Tensor:
    model = animal.model
    x, sigma = animal.latents(2)[: len(texts)], animal.levels(2)[: len(texts)]
    with torch.no_grad(), model.hold():
        return model.predict(x, sigma, [model.condition(text, x[n : n + 1], animal.size) for n, text in enumerate(texts)])


def test_every_control_picture_changes_the_answer(editor):
    latents = controls(editor)
    none, one, both = (answer(editor, [told(editor, 0, latents[:count])])[0] for count in (0, 1, 2))
    assert (one - none).norm() > 1e-3 * none.norm()
    assert (both - one).norm() > 1e-3 * none.norm()


def test_pictures_with_different_controls_answer_in_a_batch_as_alone(editor):
    latents = controls(editor)
    texts = [told(editor, 0, latents[:1]), told(editor, 0, latents[1:])]
    together = answer(editor, texts)
    model = editor.model
    x, sigma = editor.latents(2), editor.levels(2)
    for n, text in enumerate(texts):
        with torch.no_grad(), model.hold():
            alone = model.predict(x[n : n + 1], sigma[n : n + 1], [model.condition(text, x[n : n + 1], editor.size)])[0]
        torch.testing.assert_close(together[n], alone, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_slope(editor):
    """Also of those layers that only control pictures reach."""
    model, family = editor.model, family_named(editor.model.family)
    layers = carriers(editor)
    chosen = targets.choose(layers, "all linear")
    kept = family.without_untrainable(layers, controls=True)
    adapter = Adapter.fresh({name: chosen[name] for name in kept if name in chosen}, NetworkConfig(rank=2, alpha=2.0), 3)
    stream = torch.Generator().manual_seed(3)
    for branch in adapter.branches.values():
        branch.up.data = torch.randn(branch.up.shape, generator=stream) * 0.05
    adapter = adapter.to(model.device)
    x0, sigma = editor.latents(1), editor.levels(1)
    e = torch.randn(x0.shape, generator=torch.Generator().manual_seed(9)).to(x0.device)
    x, wanted = noise.noisy(model.prediction, x0, e, sigma), noise.target(model.prediction, x0, e, sigma)
    text = told(editor, 0, controls(editor))

    def value(double: bool = False) -> Tensor:
        found = model.predict(x, sigma, [model.condition(text, x, editor.size)])
        return (found.double() - wanted.double()).square().mean() if double else loss.batch_loss(found, wanted)

    parameters = named(adapter)
    with model.hold(), adapter.attached(model.layers()):
        found = dict(zip(parameters, torch.autograd.grad(value(), list(parameters.values())), strict=True))
    assert [name for name, g in found.items() if not (g.isfinite().all() and g.abs().sum() > 0)] == []
    direction = {name: g / g.norm() * parameters[name].detach().norm() for name, g in found.items()}
    expected = sum((g * direction[name]).sum().item() for name, g in found.items())
    with model.hold(), adapter.attached(model.layers()):
        with torch.no_grad():
            step = min(0.05, 0.02 * value().item() / expected)
        measured = slope(lambda: float(value(double=True)), adapter, direction, step)
    assert measured == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "recipe", params([r for r in RECIPES if not family_named(r.family).edits and r.family not in UNLIKE and not refuses(r)])
)
def test_other_families_do_not_see_them(recipe, comfyui):
    animal = build(present(recipe))
    plain, shown = (answer(animal, [told(animal, 0, controls(animal, count))]) for count in (0, 1))
    assert torch.equal(plain, shown)
