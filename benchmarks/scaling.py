"""Steps a second of one training by 1, 2, 4 ... processes, and their share of what so many times one process would do.

    python3 studio.py bench scaling [--processes 1 2 4] [--steps 40] [--shard] [--json] [--save]

The demo model learns at 128 px, batch 4, by PyTorch's own launcher, as ``studio.py train --processes`` does it; each has a
GPU of its own where there are several, else an equal part of the CPU's cores. Where processes share a device the figure says what
they cost each other, not what more devices would give; it is then marked ``shared``. With ``--shard`` several processes
also divide the network's blocks.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import _common

PICTURES = 16


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[])
    parser.add_argument("--steps", type=int, default=40, help="of each process")
    parser.add_argument("--shard", action="store_true", help="several processes divide the network's blocks")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # the folder of one of the processes
    return parser.parse_args()


def write_pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for i in range(PICTURES):
        pixels = np.random.default_rng(i).integers(0, 255, (128, 128, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a picture of {i}", encoding="utf-8")


def work(folder: Path, steps: int) -> None:
    """What each process does."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(int(os.environ.get("LOCAL_RANK", "0")) % int(os.environ["ATELIER_DEVICES"]))
    _common.use_host()
    logging.disable(logging.WARNING)
    import comfy.sd
    import torch
    from lora_atelier.training import host, job
    from lora_atelier.training.config import LengthConfig, NetworkConfig, SubsetConfig, TrainingConfig
    from lora_atelier.training.dataset import scan
    from lora_atelier.training.dataset.samples import Dataset
    from lora_atelier.training.performance.team import team

    dataset = Dataset(scan.scan(folder / "pictures", SubsetConfig("input/scaling", resolution=128, batch_size=4)))
    config = TrainingConfig("scaling", network=NetworkConfig(rank=16), length=LengthConfig(max_steps=steps * team().size))
    for name, place in {"runs_folder": "runs", "loras_folder": "loras", "cache_folder": "cache"}.items():
        patch.object(host, name, partial(folder.joinpath, place)).start()
    with torch.inference_mode():
        patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            _common.demo_checkpoint(), output_vae=True, output_clip=True
        )
        preview = job.Preview("", "", 0, 1.0, "euler", "normal", 0)
        job.run_training(
            host.Model(patcher), host.TextEncoder(clip), host.PictureCodec(vae), dataset, config, preview=preview, graph={}
        )


def measure(processes: int, steps: int, devices: int, shard: bool) -> float:
    """Steps (batches) a second of them all."""
    with tempfile.TemporaryDirectory(prefix="scaling-bench-") as name:
        folder = Path(name)
        write_pictures(folder / "pictures")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        line = [sys.executable, *launcher, __file__, "--work", name, "--steps", str(steps)]
        settings = {
            "LORA_ATELIER_TEAM": "1",
            "LORA_ATELIER_SHARD": "1" if shard and processes > 1 else "",
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
            "ATELIER_DEVICES": str(devices),
        }
        subprocess.run(line, check=True, env={**os.environ, **settings})
        pace = json.loads((folder / "runs" / "scaling" / "run.json").read_text(encoding="utf-8"))["pace"]
        return 1 / float(pace["seconds"])


def main() -> None:
    options = options_of()
    if options.work:
        work(Path(options.work), options.steps)
        return
    _common.use_host()
    import torch

    _common.demo_checkpoint()  # put together once, before several want it
    devices = torch.cuda.device_count() or 1
    counts = options.processes or [n for n in (1, 2, 4, 8) if n <= max(4, devices)]
    result: dict[str, Any] = {**_common.machine(), "devices": devices, "shard": options.shard, "processes": {}}
    alone = 0.0
    for count in sorted({1, *counts}):
        speed = measure(count, options.steps, devices, options.shard)
        alone = alone or speed
        found = {"steps_per_second": round(speed, 3), "efficiency": round(speed / (count * alone), 3), "shared": count > devices}
        result["processes"][str(count)] = found
        print(f"{count} processes: {found['steps_per_second']} steps a second, efficiency {found['efficiency']}", flush=True)
    _common.finish("scaling-shard" if options.shard else "scaling", result, as_json=options.json, keep=options.save)


if __name__ == "__main__":
    main()
