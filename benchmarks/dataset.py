"""Preparing a dataset against ComfyUI's own folder loader + ``MakeTrainingDataset``: same host, same VAE and CLIP, in one run.

    python3 studio.py bench dataset [--json] [--pictures 200] [--resolutions 256 512] [--checkpoint FILE]

The pictures are OpenMoji drawings, rendered at the very sizes of their buckets, because the stock nodes neither scale nor cut.
Every measurement has a process of its own, and the two that are compared work in turns of a few seconds. Measured are the seconds
from the folder to encoded latents and texts, and the rise of the peak memory over what the loaded models took (Linux only).
``cold`` has an empty cache, ``warm`` comes after it; the stock nodes keep nothing, so both are compared with the same figure.
Beside these ``peak_growth``, the peak beside that of a quarter of the pictures, shows whether it grows with their number, and
``unchanged_seconds`` how long a thousand small pictures take that are all cached already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

import _common

TURN = 5.0
"""Seconds after which the other side has its turn."""


def draw(folder: Path, count: int, resolution: int, captions: int = 10**6) -> None:
    """``count`` OpenMoji drawings at three bucket sizes of the resolution, with so many different ``captions`` at most."""
    import io

    import resvg_py
    from lora_atelier.demo.pictures import svg_folder
    from lora_atelier.training.dataset.buckets import assign, bucket_sizes
    from PIL import Image

    sources = sorted(svg_folder().glob("*.svg"))
    sizes = bucket_sizes(resolution, 64)
    shapes = [assign(*aspect, sizes) for aspect in ((1, 1), (3, 4), (4, 3))]
    folder.mkdir(parents=True)
    for i, source in enumerate(sources[:: max(1, len(sources) // count)][:count]):
        side = min(shapes[i % 3])
        png = bytes(resvg_py.svg_to_bytes(svg_string=source.read_text(encoding="utf-8"), width=side, height=side))
        page = Image.new("RGB", shapes[i % 3], "white")
        with Image.open(io.BytesIO(png)) as drawing:
            page.paste(drawing, ((page.width - drawing.width) // 2, (page.height - drawing.height) // 2), drawing.convert("RGBA"))
        page.save(folder / f"{i:04d}.png")
        (folder / f"{i:04d}.txt").write_text(f"a drawing, number {i % captions}", encoding="utf-8")


def peak_bytes() -> int:
    """Largest resident size of this process since ``reset_peak``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def one_side(side: str, folder: Path, resolution: int, checkpoint: str, cache: Path) -> dict[str, float]:
    """Seconds and peak memory (bytes above the loaded models) of one preparation in this process."""
    import comfy.sd
    import folder_paths
    import torch

    folder_paths.set_input_directory(str(folder.parent))
    with torch.inference_mode():
        _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=True, output_model=False)
        vae.encode(torch.zeros(1, 64, 64, 3))
        clip.encode_from_tokens(clip.tokenize("a"))
    # Imports are no part of the work; the pack's own are measured by ``import_time``.
    from comfy_extras.nodes_dataset import LoadImageTextDataSetFromFolderNode, MakeTrainingDataset
    from lora_atelier.training import host
    from lora_atelier.training.config import SubsetConfig
    from lora_atelier.training.dataset import encoded
    from lora_atelier.training.dataset.cache import TensorCache
    from lora_atelier.training.dataset.plan import Plan
    from lora_atelier.training.dataset.samples import Dataset
    from lora_atelier.training.dataset.scan import scan

    print("ready", flush=True)
    sys.stdin.readline()
    reset_peak()
    before, start = peak_bytes(), time.perf_counter()
    if side == "stock":
        with torch.inference_mode():
            images, texts = LoadImageTextDataSetFromFolderNode.execute(folder.name).result
            MakeTrainingDataset.execute(images, [vae], [clip], texts)
    else:
        config = SubsetConfig(f"input/{folder.name}", resolution=resolution, batch_size=4)
        dataset = Dataset(scan(folder, config, index=cache / "pictures.json"))
        plan = Plan(dataset, 0)
        made = encoded.EncodedDataset(dataset, 0, host.PictureCodec(vae), host.TextEncoder(clip), TensorCache(cache, 2**40))
        made.prepare(encoded.work_of(plan, 10), lambda done: None)
    return {"seconds": time.perf_counter() - start, "peak": peak_bytes() - before}


class Side:
    """``one_side`` in a process of its own."""

    def __init__(self, side: str, folder: Path, resolution: int, checkpoint: str, cache: Path):
        line = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--resolutions", str(resolution)]
        line += ["--checkpoint", checkpoint, "--cache", str(cache)]
        self.side = side
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
        self.stopped, self._since = 0.0, 0.0
        self._out, self._in = self.process.stdout, self.process.stdin
        assert self._out is not None and self._in is not None
        while (said := self._out.readline()).strip() != "ready":
            if not said:
                self.fail()

    def fail(self) -> NoReturn:
        raise SystemExit(f"the measurement of {self.side} failed; what it said stands above")

    def begin(self) -> None:
        assert self._in is not None
        self._in.write("go\n")
        self._in.flush()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        self._since = time.perf_counter()

    def go_on(self) -> None:
        self.stopped += time.perf_counter() - self._since
        self.process.send_signal(signal.SIGCONT)

    def works(self, seconds: float) -> bool:
        """Whether it is still at work after so long."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def result(self) -> dict[str, float]:
        assert self._out is not None
        said = self._out.read().splitlines()
        if self.process.wait() or not said:
            self.fail()
        found: dict[str, float] = json.loads(said[-1])
        return found | {"seconds": found["seconds"] - self.stopped}


def measure(side: str, folder: Path, resolution: int, checkpoint: str, cache: Path) -> dict[str, float]:
    """One side alone."""
    one = Side(side, folder, resolution, checkpoint, cache)
    one.begin()
    while one.works(60):
        pass
    return one.result()


def measure_in_turns(sides: list[Side]) -> list[dict[str, float]]:
    """Two sides, of which one is stopped while the other works: what slows the machine for a while slows both."""
    if not hasattr(signal, "SIGSTOP"):
        raise SystemExit("this benchmark stops processes and lets them go on, which Windows cannot")
    for side in sides:
        side.begin()
        side.pause()
    working = list(sides)
    while working:
        for side in list(working):
            side.go_on()
            if side.works(TURN):
                side.pause()
            else:
                working.remove(side)
    return [side.result() for side in sides]


def compare(count: int, resolution: int, checkpoint: str, place: Path) -> dict[str, float]:
    """The figures of one resolution."""
    folder, cache = place / f"pictures{resolution}", place / f"cache{resolution}"
    draw(folder, count, resolution)
    few = place / f"few{resolution}"
    few.mkdir()
    for path in sorted(folder.iterdir())[: max(2, count // 4 * 2)]:
        shutil.copy(path, few / path.name)
    stock, cold = measure_in_turns([Side(name, folder, resolution, checkpoint, cache) for name in ("stock", "ours")])
    warm = measure("ours", folder, resolution, checkpoint, cache)
    quarter = measure("ours", few, resolution, checkpoint, place / f"cache-few{resolution}")
    return {
        "stock_seconds": stock["seconds"], "cold_seconds": cold["seconds"], "warm_seconds": warm["seconds"],
        "stock_peak_mb": stock["peak"] / 2**20, "cold_peak_mb": cold["peak"] / 2**20, "quarter_peak_mb": quarter["peak"] / 2**20,
        "cold_ratio": cold["seconds"] / stock["seconds"], "warm_ratio": warm["seconds"] / stock["seconds"],
        "peak_memory_ratio": cold["peak"] / max(1, stock["peak"]), "peak_growth": cold["peak"] / max(1, quarter["peak"]),
    }  # fmt: skip


def unchanged(count: int, checkpoint: str, place: Path) -> float:
    """Seconds until ``count`` pictures are ready that nothing has happened to since they were cached."""
    folder, cache = place / "unchanged", place / "cache-unchanged"
    draw(folder, count, 128, captions=50)
    measure("ours", folder, 128, checkpoint, cache)
    return measure("ours", folder, 128, checkpoint, cache)["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--unchanged", type=int, default=1000, help="pictures for unchanged_seconds")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--checkpoint")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    for hidden in ("--side", "--folder", "--cache"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _common.use_host()
    if options.side:
        folder, cache = Path(options.folder), Path(options.cache)
        print(json.dumps(one_side(options.side, folder, options.resolutions[0], options.checkpoint, cache)))
        return
    checkpoint = options.checkpoint or _common.demo_checkpoint()
    result: dict[str, Any] = {**_common.machine(), "pictures": options.pictures}
    with tempfile.TemporaryDirectory() as place:
        rows = {r: compare(options.pictures, r, checkpoint, Path(place)) for r in options.resolutions}
        seconds = unchanged(options.unchanged, checkpoint, Path(place))
    result |= {"unchanged_pictures": options.unchanged, "unchanged_seconds": round(seconds, 3)}
    for name in ("cold_ratio", "warm_ratio", "peak_memory_ratio", "peak_growth"):
        result[name] = round(statistics.geometric_mean(row[name] for row in rows.values()), 4)
    result["by_resolution"] = {r: {name: round(value, 4) for name, value in row.items()} for r, row in rows.items()}
    for name, value in result.items():
        print(f"{name}: {value}")
    _common.finish("dataset", result, as_json=options.json, keep=options.save)


if __name__ == "__main__":
    main()
