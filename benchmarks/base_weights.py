"""What holding the frozen weights in eight bits costs in quality (``base_weights``), beside the weights as they were loaded.

    python3 studio.py bench base_weights [--json] [--save] [--steps 300]

The same LoRA, of rank 16 beside every layer of the demo model, is trained on its 24 pictures with the weights as loaded, in fp8
and in int8, and with both once more with the layers' inputs rounded to eight bits as well, as a GPU's products in eight bits do.
Each is then laid on the model *as loaded*, which is what people draw with, and judged by its loss on 16 pictures that it has not
seen. What chance does is told by one more run as loaded with another seed.

The demo's weights are stored in int8, on whose grid they lie: it would be no test. So a random part of a step is added to each of
them first, for all sides alike. Beside that stand the relative errors of an answer and of the LoRA's gradient on tiny models with
random weights. In fp32 on a CPU, where eight bits save memory and no time.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import _common
import torch

SIDES = ("as loaded", "fp8", "int8", "fp8, inputs too", "int8, inputs too")
RATE = 5e-4


@contextmanager
def inputs_too(wanted: bool) -> Iterator[None]:
    """Products in eight bits wherever a weight is held so, as if the device were faster with them."""
    from lora_atelier.training.tensors import eight_bits

    usual = eight_bits.is_faster
    try:
        if wanted:
            vars(eight_bits)["is_faster"] = lambda _x, _numbers: True
        yield
    finally:
        vars(eight_bits)["is_faster"] = usual


def off_the_grid(model: Any) -> None:
    """Adds to every matrix of ``model`` a random part of its step in int8."""
    stream = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        for weight in (p for p in model.base.diffusion_model.parameters() if p.ndim == 2):
            step = weight.float().abs().amax(1, keepdim=True) / 127
            weight.add_(((torch.rand(weight.shape, generator=stream) - 0.5) * step).to(weight.dtype))


def errors(
    held: Callable[[Any, Any], Any], probe: Callable[[Any], tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """Relative errors of the answer and of the gradient of every side, and of computing in bf16 with the weights as loaded.

    ``held(dtype, kind)`` is the model, ``probe`` gives both.
    """
    answer, gradient = probe(held(torch.float32, "as loaded"))
    out = {}
    for side in ("bf16", *SIDES[1:]):
        dtype, kind = (torch.bfloat16, "as loaded") if side == "bf16" else (torch.float32, side.partition(",")[0])
        with inputs_too("too" in side):
            one, other = probe(held(dtype, kind))
        out[side] = {
            "answer": round(((one - answer).norm() / answer.norm()).item(), 5),
            "gradient": round(((other - gradient).norm() / gradient.norm()).item(), 5),
        }
    return out


def of_tiny_models() -> dict[str, Any]:
    """Of SDXL and Flux with few and narrow layers and random weights."""
    build, recipes, zoo = (importlib.import_module(f"lora_atelier.tests.zoo.{name}") for name in ("build", "recipes", "test_zoo"))
    out = {}
    for recipe in (r for r in recipes.RECIPES if r.name in ("SDXL", "Flux dev")):
        animal = build.build(recipe)

        def probe(model: Any, animal: Any = animal) -> tuple[torch.Tensor, torch.Tensor]:
            one = dataclasses.replace(animal, model=model)
            adapter, seen = zoo.new_adapter(one), list[torch.Tensor]()
            network = model.base.diffusion_model
            handle = network.register_forward_hook(lambda _m, _i, given: seen.append(given.detach().flatten()))
            try:
                with torch.inference_mode(False), model.hold(), adapter.attached(model.layers()):
                    gradients = torch.autograd.grad(zoo.one_loss(one, [0, 1]), list(adapter.parameters()))
            finally:
                handle.remove()
            return torch.cat(seen), torch.cat([g.flatten() for g in gradients])

        out[recipe.name] = errors(animal.model.for_training, probe)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    options = parser.parse_args()
    here = sys.path[0]
    _common.use_host()
    sys.path.append(here)  # the other benchmarks
    import against_stock
    import comfy.sd
    from lora_atelier.demo.pictures import CODE_POINTS
    from lora_atelier.training import host

    with torch.inference_mode():
        patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            _common.demo_checkpoint(), output_vae=True, output_clip=True
        )
    trained, held = (against_stock.encode(points, clip, vae) for points in (CODE_POINTS, against_stock.HELD_OUT))
    off_the_grid(host.Model(patcher))
    result: dict[str, Any] = {**_common.machine(), "steps": options.steps, "errors_of_random_models": of_tiny_models()}
    print(result["errors_of_random_models"], file=sys.stderr)
    start = against_stock.judge(patcher, {}, held, None)[0]
    result["loss_without_lora"], result["sides"] = round(start, 5), {}
    for side, seed in (*((side, 0) for side in SIDES), ("as loaded", 1)):
        began = time.perf_counter()
        with inputs_too("too" in side):
            course = against_stock.train_ours(patcher, trained, options.steps, RATE, options.steps, side.partition(",")[0], seed)
        loss = against_stock.judge(patcher, course.loras[-1], held, None)[0]
        name = side if not seed else f"{side}, another seed"
        result["sides"][name] = {"held_out_loss": round(loss, 5), "gain": round(start - loss, 5)}
        print(f"{name}: {start:.5f} -> {loss:.5f}, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    gain = result["sides"]["as loaded"]["gain"]
    for found in result["sides"].values():
        found["share_of_the_gain"] = round(found["gain"] / gain, 3)
    for name, found in result["sides"].items():
        print(f"{name:<26}{found['held_out_loss']:>10}{found['share_of_the_gain']:>8}")
    _common.finish("base_weights", result, as_json=options.json, keep=options.save)


if __name__ == "__main__":
    main()
