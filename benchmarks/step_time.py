"""A training step of this pack against the stock ``TrainLoraNode`` in both of its modes, on the same host in one run.

    python3 studio.py bench step_time [--json] [--checkpoint FILE] [--batch 4] [--steps 12]

Every side trains a rank-16 LoRA on the same random latents and one caption; the time of a step is (long run - short run) / (more
steps), so that loading and set-up don't count. The stock node adapts every weight that it can (linear layers, convolutions,
norms and biases), so this pack is measured with its own default targets and with ``all``.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def use_host() -> None:
    """ComfyUI on the path, and this pack under a name of its own."""
    sys.path[:] = [p for p in sys.path if Path(p or os.curdir).resolve() not in (ROOT, ROOT / "benchmarks")]
    sys.path.insert(0, os.environ["ATELIER_COMFYUI"])
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    package = ModuleType("lora_atelier")
    package.__path__ = [str(ROOT)]
    package.__spec__ = importlib.machinery.ModuleSpec("lora_atelier", None, is_package=True)
    sys.modules["lora_atelier"] = package


def per_step(run: Callable[[int], None], steps: int, rounds: int) -> float:
    """Seconds a step: the median over ``rounds`` of (time of steps + 2 - time of 2) / steps."""
    run(1)
    differences = []
    for _ in range(rounds):
        times = []
        for count in (2, steps + 2):
            start = time.perf_counter()
            run(count)
            times.append(time.perf_counter() - start)
        differences.append((times[1] - times[0]) / steps)
    return statistics.median(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--cells", type=int, default=16, help="side of the square latent")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    use_host()
    import comfy.sd
    import torch
    from comfy_extras.nodes_train import TrainLoraNode
    from lora_atelier.training import host, loss, noise
    from lora_atelier.training.config import NetworkConfig, OptimizerConfig
    from lora_atelier.training.network import targets
    from lora_atelier.training.network.attach import Adapter
    from lora_atelier.training.optim import optimizers

    checkpoint = options.checkpoint
    if checkpoint is None:
        from lora_atelier.demo.weights import assemble

        checkpoint = str(assemble(ROOT / "demo" / "weights.safetensors", ROOT / ".studio" / "bench" / "demo.safetensors"))
    with torch.inference_mode():
        patcher, clip, _, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False, output_clip=True)
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("a picture"))
    model = host.Model(patcher)
    channels = patcher.get_model_object("latent_format").latent_channels
    latents = torch.randn(options.batch, channels, options.cells, options.cells)
    text = host.TextEncoder(clip).encode("a picture")
    sigmas = model.sigmas
    levels = noise.LevelSampler(model.prediction, "logit-normal" if sigmas is None else "uniform", sigmas)

    def ours(preset: str) -> Callable[[int], None]:
        def run(steps: int) -> None:
            with torch.inference_mode(False):
                layers = targets.choose(model.layers(), preset)  # type: ignore[arg-type]
                adapter = Adapter.fresh(layers, NetworkConfig(rank=16), 0).to(model.device)
                optimizer = optimizers.build(OptimizerConfig(), [(adapter.parameters(), OptimizerConfig().peak)])
                with model.hold(), adapter.attached(layers):
                    x0 = model.latents_in(latents.to(model.device))
                    for step in range(steps):
                        draw = noise.step_generator(0, step)
                        sigma = levels.draw(len(x0), (options.cells, options.cells), draw).to(model.device)
                        e = torch.randn(x0.shape, generator=draw).to(model.device)
                        x = noise.noisy(model.prediction, x0, e, sigma)
                        conditions = [model.condition(text, x[i : i + 1], {}) for i in range(len(x))]
                        wanted = noise.target(model.prediction, x0, e, sigma)
                        loss.batch_loss(model.predict(x, sigma, conditions), wanted).backward()
                        optimizer.step()
                        optimizer.zero_grad()

        return run

    def stock(bypass: bool) -> Callable[[int], None]:
        def run(steps: int) -> None:
            with torch.inference_mode():
                TrainLoraNode.execute(
                    model=[patcher], latents=[{"samples": latents}], positive=[positive], batch_size=[options.batch],
                    steps=[steps], grad_accumulation_steps=[1], learning_rate=[1e-4], rank=[16], optimizer=["AdamW"],
                    loss_function=["MSE"], seed=[0], training_dtype=["fp32"], lora_dtype=["fp32"], quantized_backward=[False],
                    algorithm=["LoRA"], gradient_checkpointing=[False], checkpoint_depth=[1], offloading=[False],
                    existing_lora=["[None]"], bucket_mode=[False], bypass_mode=[bypass],
                )  # fmt: skip

        return run

    sides = {
        "ours": ours("attention + feed-forward"),
        "ours_all": ours("all"),
        "stock_bypass": stock(True),
        "stock": stock(False),
    }
    seconds = {name: per_step(run, options.steps, options.rounds) for name, run in sides.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    result = {
        "device": device,
        "machine": platform.machine(),
        "model": model.family,
        "batch": options.batch,
        "seconds_per_step": {name: round(value, 4) for name, value in seconds.items()},
        "ratio_to_stock_bypass": round(seconds["ours"] / seconds["stock_bypass"], 3),
        "ratio_to_stock_default": round(seconds["ours"] / seconds["stock"], 3),
        "ratio_to_stock_bypass_same_targets": round(seconds["ours_all"] / seconds["stock_bypass"], 3),
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
