"""A grid of 6 epochs x 5 strengths against the same cells as a stock graph, on the same host in one run.

    python3 studio.py bench grid [--json] [--save] [--checkpoint FILE] [--epochs 6] [--strengths '0-1(+0.25)'] [--steps 20]

A cell of the stock graph is LoraLoader, CLIPTextEncode twice, KSampler and VAEDecode, called as the server calls them. The grid's
time holds all that it does: reading and hashing files, the control without a LoRA, saving every cell, previews and the page. Both
sides begin warm, and each LoRA has weights unlike zero. ``memory_growth_mb`` is how much more memory was in use at most while the
second half of the cells was drawn than while the first was.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import _common
from lora_atelier.training.config import sampling

PROMPT, NEGATIVE, SEED = "fluent emoji, fox", "blurry", 1


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--strengths", default="0.2-1.0(+0.2)", help="as the node takes them; 0 is drawn once by the grid")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=128, help="of a cell, in pixels")
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", type=int, default=0, help="cells of one batch; 0: as many as fit")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    return parser.parse_args()


def write_epochs(model: Any, folder: Path, count: int) -> list[Path]:
    """LoRA files of rank 16 with the pack's default targets, as a run saves them."""
    import torch
    from lora_atelier.training.config import NetworkConfig
    from lora_atelier.training.network import lora_file, targets
    from lora_atelier.training.network.adapter import Adapter
    from safetensors.torch import save_file

    paths = []
    layers = targets.choose(model.layers(), "attention + feed-forward")
    for epoch in range(1, count + 1):
        adapter = Adapter.fresh(layers, NetworkConfig(rank=16, alpha=16.0), epoch)
        stream = torch.Generator().manual_seed(epoch)
        for branch in adapter.branches.values():
            up: Any = branch.factors()[1]
            up.data = torch.randn(up.shape, generator=stream) * 0.01
        paths.append(folder / f"bench-{epoch:06d}.safetensors")
        save_file(lora_file.to_file(adapter, model.lora_names(), model.family, torch.float16), paths[-1])
    return paths


class Stock:
    """The nodes of a stock graph; as on a server, each keeps what it kept from the last execution."""

    def __init__(self, patcher: Any, clip: Any, vae: Any, options: argparse.Namespace):
        import nodes

        self.patcher, self.clip, self.vae, self.options = patcher, clip, vae, options
        self.loader, self.encoder, self.sampler, self.decoder = (
            nodes.LoraLoader(), nodes.CLIPTextEncode(), nodes.KSampler(), nodes.VAEDecode()
        )  # fmt: skip
        self.seconds = dict.fromkeys(("lora", "text", "sampling", "decoding"), 0.0)

    def cell(self, name: str, strength: float, latent: dict[str, Any]) -> Any:
        """Pixels (1, H, W, 3)."""
        o, marks = self.options, [time.perf_counter()]

        def mark(part: str) -> None:
            marks.append(time.perf_counter())
            self.seconds[part] += marks[-1] - marks[-2]

        model, clip = self.loader.load_lora(self.patcher, self.clip, name, strength, strength)
        mark("lora")
        (positive,), (negative,) = (self.encoder.encode(clip, text) for text in (PROMPT, NEGATIVE))
        mark("text")
        (samples,) = self.sampler.sample(
            model, SEED, o.steps, o.cfg, o.sampler, "simple", positive, negative, {"samples": latent["samples"].clone()}
        )
        mark("sampling")
        (pixels,) = self.decoder.decode(self.vae, samples)
        mark("decoding")
        return pixels


def resident() -> float:
    """MB of memory in use by this process."""
    import psutil  # type: ignore[import-untyped]

    used: int = psutil.Process(os.getpid()).memory_info().rss
    return used / 2**20


def main() -> None:
    options = options_of()
    _common.use_host()
    with tempfile.TemporaryDirectory(prefix="grid-bench-") as folder:
        result = measure(options, Path(folder))
    for name, value in result.items():
        print(f"{name}: {value}")
    from lora_atelier.training.grid.axes import parse_strengths

    case = "with-0" if 0.0 in parse_strengths(options.strengths) else ""
    _common.finish("grid", result, as_json=options.json, keep=options.save, case=case)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times."""
    import comfy.sd
    import folder_paths
    import numpy as np
    import torch
    from lora_atelier.training import host
    from lora_atelier.training.dataset.images import to_picture
    from lora_atelier.training.grid import axes as typed
    from lora_atelier.training.grid import cell_renderer, plan, render
    from lora_atelier.training.grid.sheet import Failed
    from lora_atelier.training.runs.record import SavedLoRA
    from PIL import Image

    checkpoint = options.checkpoint or _common.demo_checkpoint()
    folder_paths.add_model_folder_path("loras", str(folder), is_default=True)
    with torch.inference_mode():
        patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=True)
    model, text, codec = host.Model(patcher), host.TextEncoder(clip), host.PictureCodec(vae)
    with torch.inference_mode(False):
        paths = write_epochs(model, folder, options.epochs)
    strengths = typed.parse_strengths(options.strengths)
    columns = tuple(plan.Column(SavedLoRA(path, i, i), "bench", f"epoch {i}") for i, path in enumerate(paths, 1))
    side, factor = options.side, codec.downscale
    latent = {"samples": torch.zeros(1, model.latent_channels, side // factor, side // factor)}
    settings = sampling.Sampling(NEGATIVE, options.sampler, "simple", options.steps, options.cfg, side, side, SEED)
    stock = Stock(patcher, clip, vae, options)
    memory: list[float] = []

    def draw_stock() -> list[Any]:
        return [to_picture(stock.cell(path.name, s, latent)[0]) for path in paths for s in strengths]

    def draw_ours(round_: int, shown: tuple[plan.Column, ...]) -> list[Any]:
        axes = plan.Axes((PROMPT,), shown, strengths, (SEED,))
        grid = render.Grid(model, text, codec, axes, settings, folder / str(round_), {}, together=options.together)
        memory.clear()
        grid.render(lambda done, page: memory.append(resident()))
        grid.save_pages()
        drawn = [grid.book.cells[0][x, y] for x in range(1, len(shown) + 1) for y in range(len(strengths))]
        if failed := [cell.reason for cell in drawn if isinstance(cell, Failed)]:
            raise SystemExit(failed[0])
        return [Image.open(str(cell)).convert("RGB") for cell in drawn]

    on = _common.machine()
    times: dict[str, list[float]] = {"stock": [], "ours": [], "one_plain_cell": []}
    difference, growth = 0, 0.0
    with torch.inference_mode():
        stock.cell(paths[0].name, strengths[-1], latent)  # warm
        draw_ours(-1, columns[:1])
        stock.seconds = dict.fromkeys(stock.seconds, 0.0)
        for round_ in range(options.rounds):
            start = time.perf_counter()
            theirs = draw_stock()
            times["stock"].append(time.perf_counter() - start)
            start = time.perf_counter()
            ours = draw_ours(round_, columns)
            times["ours"].append(time.perf_counter() - start)
            growth = max(growth, max(memory[len(memory) // 2 :]) - max(memory[: len(memory) // 2]))
            brush = cell_renderer.CellRenderer(model, text, codec, settings)
            brush.plain(plan.Page(PROMPT, SEED))
            start = time.perf_counter()
            brush.plain(plan.Page(PROMPT, SEED))
            times["one_plain_cell"].append(time.perf_counter() - start)
            for a, b in zip(theirs, ours, strict=True):
                difference = max(difference, int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    count = len(paths) * len(strengths)
    return {
        **on,
        "model": f"{model.family}, {str(model.compute_dtype).removeprefix('torch.')}",
        "cells": count,
        "settings": f"{options.sampler}, {options.steps} steps, cfg {options.cfg:g}, {side} px, strengths {options.strengths}",
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "stock_parts": {name: round(value / options.rounds, 3) for name, value in stock.seconds.items()},
        "ratio_to_stock": round(seconds["ours"] / seconds["stock"], 3),
        "ratio_of_plain_cells": round(seconds["one_plain_cell"] * count / seconds["stock"], 3),
        "max_pixel_difference": difference,
        "memory_growth_mb": round(growth, 1),
    }


if __name__ == "__main__":
    main()
