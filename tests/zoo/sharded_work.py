"""What each process of ``test_sharded`` does: gradients of tiny models, whole and with the blocks divided among the processes.

Started by path, with JSON: ``{"cases": [{"name", "again", "stored", "held"}, ...], "out": folder}``. Its findings go to a file.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def work(told: dict[str, Any]) -> None:
    from lora_atelier.training.performance.team import team

    found = [of_case(one) for one in told["cases"]]
    Path(told["out"], f"{team().rank}.json").write_text(json.dumps(found), encoding="utf-8")


def of_case(case: dict[str, Any]) -> dict[str, Any]:
    import torch
    from lora_atelier.tests.zoo.build import build
    from lora_atelier.tests.zoo.recipes import RECIPES
    from lora_atelier.tests.zoo.test_compiled import deeper
    from lora_atelier.tests.zoo.test_zoo import new_adapter, one_loss
    from lora_atelier.training.performance.checkpointing import checkpointed
    from lora_atelier.training.performance.memory import Weights
    from lora_atelier.training.performance.sharding import Shards
    from lora_atelier.training.performance.team import team
    from lora_atelier.training.performance.thrift import Thrift
    from torch import nn

    us = team()
    animal = build(deeper(next(recipe for recipe in RECIPES if recipe.name == case["name"])))
    model, network = animal.model, animal.model.base.diffusion_model
    if stored := case.get("stored"):
        with torch.inference_mode():
            for module in network.modules():
                if isinstance(module, nn.Linear):
                    module.to(getattr(torch, stored))
    model = model.for_training(None, case.get("held", "as loaded"))
    animal = type(animal)(animal.recipe, model, animal.loaded)
    adapter = new_adapter(animal)
    flat = adapter.flatten(model.compute_dtype)
    shards = Shards(us.blocks)
    blocks = model.blocks()
    again = {"none": [], "all": blocks, "some": blocks[us.rank :: 2]}[case.get("again", "none")]
    held = []

    def gradients(offload: Any) -> tuple[list[float], torch.Tensor]:
        """Of two steps and a pass without gradient between them."""
        flat.zero()
        losses = []
        with model.hold(offload=offload), adapter.attached(model.layers()), checkpointed(again):
            held.append(shards.held)
            for number in range(2):
                flat.begin()
                loss = one_loss(animal, [us.rank % 2])
                loss.backward()
                flat.collect()
                losses.append(loss.item())
                del loss  # and its graph, as in the loop
                with torch.no_grad():
                    losses.append(one_loss(animal, [number]).item())
        return losses, flat.gradient.clone()

    others = sums(network)
    whole_losses, whole = gradients(0.0)
    before = marks(network)
    divided_losses, divided = gradients(shards)
    asked = shards.asked()
    order = us.most([asked, -asked])
    sizes = Weights.of(blocks, model.weights())
    thrift = Thrift(len(blocks), len(blocks), eight_bits=case.get("held") is not None).sharing(us.size)
    return {
        "far": ((whole - divided).norm() / whole.norm()).item(), "equal": torch.equal(whole, divided),
        "moved": whole.norm().item(), "losses": [whole_losses, divided_losses],
        "as_it_was": before == marks(network) and others == sums(network),
        "held": held[-1], "after": shards.held, "left": left(), "blocks": sum(sizes.held_sizes(thrift)),
        "alike": order[0] == -order[1], "asked": asked != 0,
    }  # fmt: skip


def marks(network: Any) -> list[tuple[Any, ...]]:
    """Classes, hooks, attributes and tensors of all modules, the tensors by identity."""
    return [
        (
            id(type(module)), sorted(module.__dict__), [id(t) for t in (*module._parameters.values(), *module._buffers.values())],
            [len(value) for name, value in sorted(vars(module).items()) if "hooks" in name],
        )
        for module in network.modules()
    ]  # fmt: skip


def sums(network: Any) -> list[tuple[str, int]]:
    import torch

    with torch.inference_mode():
        tensors = ((name, t.detach().contiguous().reshape(-1)) for name, t in network.state_dict().items())
        return [(name, hash(t.view(torch.uint8).numpy().tobytes())) for name, t in tensors if t.numel()]


def left() -> int:
    """What FSDP was given and is still there."""
    from lora_atelier.training.performance import sharding

    return sum(
        type(one).__name__.endswith(("_Part", "_Whole")) and isinstance(one, (sharding._Part, sharding._Whole))
        for one in gc.get_objects()
    )


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("ground", Path(__file__).resolve().parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    from lora_atelier.tests.zoo import sharded_work

    sharded_work.work(json.loads(sys.argv[1]))
