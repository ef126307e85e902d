"""A grid of 6 epochs x 5 strengths against the same cells as a stock graph, on the same host in one run.

    python3 studio.py bench grid [--json] [--save] [--checkpoint FILE] [--epochs 6] [--strengths '0-1(+0.25)'] [--steps 20]
                                 [--together 0,1,16] [--side 1024]

It runs on a GPU where there is one, and says which. ``--together``: cells of one batch, each number a side of its own; 0 is what
the node does by itself. ``passes`` counts how often the diffusion network was asked, and for how many rows in all; of these
``replayed`` were CUDA graphs.

A cell of the stock graph is LoraLoader, CLIPTextEncode twice, KSampler and VAEDecode, called as the server calls them. The grid's
time holds all that it does: reading and hashing files, the control without a LoRA, saving every cell, previews and the page. Both
sides begin warm, and each LoRA has weights unlike zero. ``memory_growth_mb`` is how much more memory was in use at most while the
second half of the cells was drawn than while the first was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
from lora_atelier.training.config import sampling

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
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
    parser.add_argument("--together", default="0", help="cells of one batch, several to compare; 0: as many as fit, up to 8")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: this process's own time, where other work runs too")
    parser.add_argument("--page", help="where to put the last page, to be looked at")
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
            up.data = torch.randn(up.shape, generator=stream) * 0.05
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
        o, now = self.options, CLOCKS[self.options.clock]
        marks = [now()]

        def mark(part: str) -> None:
            marks.append(now())
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


class Passes:
    """Counts the passes of a network and their rows."""

    def __init__(self, network: Any):
        self.passes = self.rows = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, _network: Any, inputs: tuple[Any, ...]) -> None:
        self.passes += 1
        self.rows += len(inputs[0])

    def take(self) -> dict[str, int]:
        """What there was since the last time."""
        found = {"passes": self.passes, "rows": self.rows}
        self.passes = self.rows = 0
        return found


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

    now = CLOCKS[options.clock]
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

    def draw_ours(round_: int, shown: tuple[plan.Column, ...], together: int) -> list[Any]:
        axes = plan.Axes((PROMPT,), shown, strengths, (SEED,))
        grid = render.Grid(model, text, codec, axes, settings, folder / f"{round_}-{together}", {}, together=together)
        memory.clear()
        grid.render(lambda done, page: memory.append(resident()))
        pages.extend(grid.save_pages())
        replayed[ours_of(together)] = grid.brush.network.replays
        drawn = [grid.book.cells[0][x, y] for x in range(1, len(shown) + 1) for y in range(len(strengths))]
        if failed := [cell.reason for cell in drawn if isinstance(cell, Failed)]:
            raise SystemExit(failed[0])
        return [Image.open(str(cell)).convert("RGB") for cell in drawn]

    def ours_of(together: int) -> str:
        return f"ours_{together}_together" if together else "ours"

    on = _common.machine()
    sizes = [int(size) for size in options.together.split(",")]
    times: dict[str, list[float]] = {"stock": [], **{ours_of(size): [] for size in sizes}, "one_plain_cell": []}
    asked: dict[str, dict[str, int]] = {}
    replayed: dict[str, int] = {}
    pages: list[Path] = []
    # Both sides' networks are one.
    counter = Passes(model.base.diffusion_model)
    difference, growth = 0, 0.0
    with torch.inference_mode():
        stock.cell(paths[0].name, strengths[-1], latent)  # warm
        draw_ours(-1, columns[:1], sizes[0])
        counter.take()
        stock.seconds = dict.fromkeys(stock.seconds, 0.0)
        for round_ in range(options.rounds):
            start = now()
            theirs = draw_stock()
            times["stock"].append(now() - start)
            asked["stock"] = counter.take()
            for size in sizes:
                start = now()
                ours = draw_ours(round_, columns, size)
                times[ours_of(size)].append(now() - start)
                asked[ours_of(size)] = counter.take() | {"replayed": replayed[ours_of(size)]}
                growth = max(growth, max(memory[len(memory) // 2 :]) - max(memory[: len(memory) // 2]))
                for a, b in zip(theirs, ours, strict=True):
                    difference = max(difference, int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()))
            brush = cell_renderer.CellRenderer(model, text, codec, settings)
            brush.plain(plan.Page(PROMPT, SEED))
            start = now()
            brush.plain(plan.Page(PROMPT, SEED))
            times["one_plain_cell"].append(now() - start)
            counter.take()
    if options.page:
        shutil.copyfile(pages[-1], options.page)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    count = len(paths) * len(strengths)
    return {
        **on,
        "model": f"{model.family}, {str(model.compute_dtype).removeprefix('torch.')}",
        "cells": count,
        "settings": f"{options.sampler}, {options.steps} steps, cfg {options.cfg:g}, {side} px, strengths {options.strengths}",
        "clock": options.clock,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "stock_parts": {name: round(value / options.rounds, 3) for name, value in stock.seconds.items()},
        "network": asked,
        "ratio_to_stock": {ours_of(size): round(seconds[ours_of(size)] / seconds["stock"], 3) for size in sizes},
        "ratio_of_plain_cells": round(seconds["one_plain_cell"] * count / seconds["stock"], 3),
        "max_pixel_difference": difference,
        "memory_growth_mb": round(growth, 1),
    }


if __name__ == "__main__":
    main()
