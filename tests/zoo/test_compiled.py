"""Compiled blocks of every family: no break in a graph, one compilation for each kind of block, the gradient of plain code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.performance.block_kinds import regions
from lora_atelier.training.performance.compiling import Compiled
from torch import Tensor, nn

from ..conftest import GPU
from .build import Animal, build
from .recipes import RECIPES, Recipe
from .test_zoo import apart, carriers, new_adapter, one_loss, params, present, refuses

STAY_PLAIN: dict[tuple[str, str], str] = {}
"""(family, class of a block): why it cannot be compiled as one graph. It is empty and should stay so."""
COUNTS = {"SD 1.5": 7, "SDXL": 7, "Flux dev": 2, "Krea 2": 1}
"""Compilations of some models' first size, counted by hand: a UNet's transformer blocks at two sizes, its residual blocks by
their widths and sizes, one way down and one up; Flux's two kinds."""
MORE = {"HiDream I1": 1, "Wan 2.1, one frame": 1, "Wan 2.2 5B, one frame": 1}
"""Compilations beyond one for each kind, which must not grow. HiDream's sends tokens to experts by a mask; what Wan's first block
reads was transposed, and lies in another order than what the others read."""
DEPTHS = {"depth", "depth_single_blocks", "n_layers", "num_layers", "num_blocks", "num_visual_blocks", "layers"}


def deeper(recipe: Recipe) -> Recipe:
    """With one more block in each row, so that a graph for each place would be seen. Where widths hang on the depth: as it is."""
    if recipe.family in ("SD3", "HiDream", "HunyuanDiT", "HunyuanDiT1") or recipe.name.startswith("Cosmos-Predict2, from"):
        return recipe
    config = {key: value + 1 if key in DEPTHS and type(value) is int else value for key, value in recipe.config.items()}
    return dataclasses.replace(recipe, config=config)


def gradients(animal: Animal, adapter: nn.Module, compiled: Compiled) -> dict[str, Tensor]:
    flat = adapter.flat or adapter.flatten(animal.model.compute_dtype)
    flat.zero()

    def step() -> Tensor:
        flat.begin()
        loss = one_loss(animal, [0, 1])
        loss.backward()
        flat.collect()
        return loss

    with animal.model.hold(), adapter.attached(animal.model.layers()), compiled.on():
        compiled.run(step, flat)
    return {name: part.clone() for name, part in flat.named(flat.gradient).items()}


def kinds(animal: Animal, adapter: nn.Module, step: Callable[[], object]) -> set[object]:
    """Of the blocks that ``step`` runs and that something is learnt through: class, weights, layers with a branch, sizes."""
    met: set[object] = set()
    layers, handles = animal.model.layers(), []
    learning = {id(layers[name]) for name in adapter.branches}

    def note(block: nn.Module, args: tuple, kwargs: dict, found: object) -> None:
        outputs = found if isinstance(found, (tuple, list)) else [found]
        if any(isinstance(t, Tensor) and t.requires_grad for t in outputs):
            weights = tuple((name, p.shape) for name, p in block.named_parameters())
            branches = tuple(name for name, m in block.named_modules() if id(m) in learning)
            sizes = tuple(t.shape for t in [*args, *kwargs.values()] if isinstance(t, Tensor))
            met.add((type(block), weights, branches, sizes))

    for block in regions(animal.model.blocks()):
        handles.append(block.register_forward_hook(note, with_kwargs=True))
    try:
        step()
    finally:
        for handle in handles:
            handle.remove()
    return met


EACH_RUN = (
    "SD 1.5", "SDXL", "SD 3", "Flux dev", "Flux.2 klein", "Krea 2", "HiDream I1", "Wan 2.1, one frame", "Qwen-Image", "Lumina 2",
    "Cosmos-Predict2", "HunyuanVideo, one frame", "PixArt sigma", "AuraFlow",
)  # fmt: skip
"""One of each kind of network; the others, which share their blocks' code, are compiled with ``--all-models``."""
# On a CPU every family can be traced; elsewhere a UNet and a transformer are enough.
COMPILED = [r for r in RECIPES if not refuses(r) and (not GPU or r.name in ("SD 1.5", "Flux dev"))]
OTHERS = [pytest.param(r, id=r.name, marks=[pytest.mark.all_models]) for r in COMPILED if r.name not in EACH_RUN]


@pytest.mark.parametrize("recipe", [*params([r for r in COMPILED if r.name in EACH_RUN]), *OTHERS])
def test_blocks_compile_whole_once_a_kind_to_the_same_gradient(recipe, comfyui):
    from torch._dynamo.utils import counters

    animal = build(present(deeper(recipe)))
    adapter, said = new_adapter(animal), []
    plain = Compiled([], pytest.fail)
    expected: dict[str, Tensor] = {}
    met = kinds(animal, adapter, lambda: expected.update(gradients(animal, adapter, plain)))
    torch._dynamo.reset()
    counters.clear()
    compiled = Compiled(animal.model.blocks(), said.append, backend="eager")
    assert apart(expected, gradients(animal, adapter, compiled)) == {} and compiled.graphs == 0
    assert apart(expected, gradients(animal, adapter, compiled)) == {}
    assert not counters["graph_break"]
    assert {(recipe.family, name) for name in names_of(said)} == {key for key in STAY_PLAIN if key[0] == recipe.family}
    wanted = len(met) + MORE.get(recipe.name, 0)
    assert compiled.active and compiled.graphs == wanted == COUNTS.get(recipe.name, wanted)
    assert apart(expected, gradients(animal, adapter, compiled)) == {}
    assert compiled.settled and compiled.graphs == wanted


def names_of(said: list[str]) -> list[str]:
    """Classes of the blocks that are said to stay plain; any other sentence is an error."""
    found: list[str] = []
    for line in said:
        assert "run as plain code" in line, line
        found += line.split("LoRA: ")[1].split(" (")[0].split(", ")
    return found


@pytest.mark.parametrize("name", ["Flux dev"])
@pytest.mark.parametrize("kind", [{"weight_decompose": True}, {"algorithm": "LoHa"}, {"algorithm": "LoKr"}], ids=str)
def test_with_other_adapters(name, kind, comfyui):
    animal = build(present(next(r for r in RECIPES if r.name == name)))
    layers = {layer: carriers(animal)[layer] for layer in new_adapter(animal).branches}
    adapter = Adapter.fresh(layers, NetworkConfig(rank=2, alpha=2.0, **kind), 3)
    stream = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=stream)
    compiled = Compiled(animal.model.blocks(), pytest.fail, backend="eager")
    expected = gradients(animal, adapter, Compiled([], pytest.fail))
    gradients(animal, adapter, compiled)
    assert apart(expected, gradients(animal, adapter, compiled)) == {} and compiled.graphs > 0
    known = compiled.graphs
    gradients(animal, adapter, compiled)
    assert compiled.settled and compiled.graphs == known


@pytest.mark.cpu_only("the attention of a device that registers itself is traced for one size at a time")
@pytest.mark.parametrize("name", ["Flux dev"])
def test_after_the_first_size_one_more_compilation_serves_all(name, comfyui):
    """A graph for every size would be seen; a few come of what torch takes for different: one row, equal sides."""
    animal = build(present(next(r for r in RECIPES if r.name == name)))
    adapter, plain = new_adapter(animal), Compiled([], pytest.fail)
    compiled = Compiled(animal.model.blocks(), pytest.fail, backend="eager")
    height, width = animal.recipe.cells
    counts: list[int] = []
    for more in ((0, 0), (0, 0), (0, 8), (8, 8), (8, 16), (16, 8), (16, 24)):
        recipe = dataclasses.replace(animal.recipe, cells=(height + more[0], width + more[1]))
        other = dataclasses.replace(animal, recipe=recipe)
        expected = gradients(other, adapter, plain)
        gradients(other, adapter, compiled)  # a trusted network's first pass of a size only looks
        assert apart(expected, gradients(other, adapter, compiled)) == {}
        counts.append(compiled.graphs)
    assert counts[-1] <= 4 * counts[1] and counts[-1] == counts[-3]
