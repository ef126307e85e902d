"""What a pause of a training run costs: an epoch's end with a save, with and without a sample. Counted, not timed.

    python3 studio.py bench pauses [--json] [--save]

The demo model is trained for a few steps on noise, with held-out pictures, a save and a snapshot at every epoch's end and samples
at every second one, as a graph would run it. Counted are loads that the host is asked for, what it brings to the device and puts
aside, walks over a model's modules, bytes that are hashed, what would wait for a GPU (numbers and tensors read), and files. It
runs on a pretended device (see ``_counts.py``), so no GPU is needed, and the counts are the same on every machine.

| case | patchers | memory |
| --- | --- | --- |
| ``plain`` | those of a host without dynamic VRAM | there is room for everything |
| ``low`` | the same | the text encoder never fits whole, and model, VAE and a step only just |
| ``dynamic`` | those that page weights in, with a stand-in for the CUDA library that does it | there is room for everything |
| ``text`` | plain | the text encoder is trained as well |
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import _common
import _counts

MIB = 2**20
CASES: dict[str, dict[str, Any]] = {
    "plain": {"memory": 2**40},
    "low": {"memory": 110 * MIB},
    "dynamic": {"memory": 2**40, "dynamic": True},
    "text": {"memory": 2**40},
}
LOST = "bytes on the device of models that the host cannot put aside any more"
PICTURES, EPOCHS, SAMPLE_EVERY = 6, 6, 2


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    return parser.parse_args()


def write_pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    for i in range(PICTURES):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a picture of {i}", encoding="utf-8")


def count(case: str, checkpoint: str, folder: Path) -> dict[str, dict[str, float]]:
    """One whole run; the mean of every segment."""
    import comfy.sd
    import torch
    from lora_atelier.training import host, job
    from lora_atelier.training.config import LengthConfig, NetworkConfig, SubsetConfig, TextConfig, TrainingConfig
    from lora_atelier.training.dataset import scan
    from lora_atelier.training.dataset.samples import Dataset

    pictures = folder / "pictures"
    pictures.mkdir()
    write_pictures(pictures)
    dataset = Dataset(scan.scan(pictures, SubsetConfig("input/pauses", resolution=64, batch_size=2, validation_share=0.34)))
    config = TrainingConfig(
        case,
        network=NetworkConfig(rank=4),
        length=LengthConfig(epochs=EPOCHS, sample_every=SAMPLE_EVERY),
        text=TextConfig("clip" if case == "text" else "none"),
    )
    preview = job.Preview("a fox\na cat", "blurry", 2, 2.0, "euler", "normal", 1)
    found = _counts.Counts()
    places = {"runs_folder": "runs", "loras_folder": "loras", "cache_folder": "cache"}
    with (
        ExitStack() as stack,
        _counts.pretended(**CASES[case]),
        torch.inference_mode(),
    ):
        for name, place in places.items():
            stack.enter_context(patch.object(host, name, partial(folder.joinpath, place)))
        patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=True)
        with found.watching():
            job.run_training(
                host.Model(patcher), host.TextEncoder(clip), host.PictureCodec(vae), dataset, config, preview=preview,
                graph={},
            )  # fmt: skip
        left = _counts.strangers()
        del patcher, clip, vae
    return {**{segment: found.per(segment) for segment in _counts.SEGMENTS}, "left behind": {LOST: left}}


def table(case: str, found: dict[str, dict[str, float]]) -> str:
    segments = list(_counts.SEGMENTS)
    names = sorted({name for segment in segments for name in found[segment]})
    width = max(len(name) for name in names) + 2
    lines = [f"\n{case}", " " * width + "".join(f"{segment:>14}" for segment in segments)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f"{found[segment].get(name, 0):>14g}" for segment in segments))
    return "\n".join([*lines, *(f"{name}: {value:g}" for name, value in found["left behind"].items())])


def main() -> None:
    options = options_of()
    _common.use_host()
    logging.disable(logging.WARNING)
    checkpoint = _common.demo_checkpoint()
    result: dict[str, Any] = {**_common.machine(), "pretended": "a device in main memory; see _counts.py", "cases": {}}
    for case in options.cases:
        with tempfile.TemporaryDirectory(prefix="pauses-bench-") as folder:
            result["cases"][case] = count(case, checkpoint, Path(folder))
        print(table(case, result["cases"][case]))
    _common.finish("pauses", result, as_json=options.json, keep=options.save)


if __name__ == "__main__":
    main()
