"""Where the time of preparing goes: 1,000 pictures at 1024 px, looked into, read, and encoded with and without help beside.

    python3 studio.py bench preparing [--json] [--save] [--pictures 1000] [--encoded 1000] [--resolution 1024] [--checkpoint FILE]

The pictures are noise of several sizes, half of them JPEGs and half PNGs, up to one and a half times as large as their buckets;
many have the same pixels, and none the same bytes.

| figure | what is done |
| --- | --- |
| ``scan_seconds`` | the folder is read: every picture is decoded small, hashed and looked at for near duplicates |
| ``read_alone``, ``read_ahead`` | decoding, cutting and resizing; one after the other, and by several threads ahead |
| ``prepared_alone``, ``prepared_ahead`` | the whole, with the VAE and the cache |

``alone`` does one thing after the other; ``ahead`` reads in threads, encodes in batches as large as the memory lets them be, and
writes behind. The two work in turns on the same groups of pictures, so what slows the machine for a while slows both. The pack
itself works ``ahead`` on a GPU, and ``alone`` where the encoder has the cores to itself. ``peak_mb`` is the rise of the peak
memory while 200 pictures are read ahead (Linux only).
"""

from __future__ import annotations

import argparse
import io
import logging
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import _common
from dataset import peak_bytes, reset_peak

GROUP = 20
"""Pictures of a turn."""
JPEG = b"\xff\xd8"


def draw(folder: Path, count: int, resolution: int) -> None:
    """``count`` pictures of noise in three shapes of buckets."""
    import numpy as np
    from lora_atelier.training.dataset.buckets import assign, bucket_sizes
    from PIL import Image

    folder.mkdir(parents=True)
    sizes = bucket_sizes(resolution, 64)
    shapes = [assign(*aspect, sizes) for aspect in ((1, 1), (3, 4), (4, 3))]
    stream = np.random.default_rng(0)
    drawn = []
    for number in range(12):
        width, height = (round(side * (1.0 + 0.5 * (number % 4) / 3)) for side in shapes[number % 3])
        pixels = np.zeros((height, width, 3))
        for cell in (4, 16, 64, 256):
            coarse = stream.normal(0, 40, (height // cell + 2, width // cell + 2, 3))
            shown = Image.fromarray((coarse + 128).clip(0, 255).astype(np.uint8))
            pixels += np.asarray(shown.resize((width, height), Image.Resampling.BICUBIC), dtype=float) - 128
        file = io.BytesIO()
        image = Image.fromarray((pixels + 128 + stream.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))
        image.save(file, "PNG", compress_level=4) if number % 2 else image.save(file, "JPEG", quality=92)
        drawn.append(file.getvalue())
    for i in range(count):
        data = drawn[i % len(drawn)]
        (folder / f"{i:04d}.{'jpg' if data[:2] == JPEG else 'png'}").write_bytes(numbered(data, i))
        (folder / f"{i:04d}.txt").write_text("a picture of noise", encoding="utf-8")


def numbered(data: bytes, number: int) -> bytes:
    """A JPEG's or PNG's bytes with a comment, which makes another file of it with the same pixels."""
    text = f"Comment\0{number}".encode()
    if data[:2] == JPEG:
        return data[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + data[2:]
    chunk = b"tEXt" + text
    behind = 33  # the signature and the header
    return data[:behind] + len(text).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[behind:]


def in_turns(groups: Sequence[Any], sides: dict[str, Callable[[Any], object]]) -> dict[str, list[float]]:
    """Seconds of every side for every group; each group begins with another side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number, group in enumerate(groups):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            begin = time.perf_counter()
            sides[name](group)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: dict[str, list[float]], what: str) -> float:
    """What is done ahead to what is done alone: the median over the groups."""
    pairs = zip(seconds[f"{what}_ahead"], seconds[f"{what}_alone"], strict=True)
    return statistics.median(ahead / alone for ahead, alone in pairs)


def say(found: dict[str, Any]) -> None:
    """What is known so far, to the person."""
    print({name: round(value, 3) for name, value in found.items()}, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    import comfy.sd
    import torch
    from lora_atelier.training import host
    from lora_atelier.training.config import SubsetConfig
    from lora_atelier.training.dataset import encoded, stream, workers
    from lora_atelier.training.dataset.cache import TensorCache
    from lora_atelier.training.dataset.plan import Plan
    from lora_atelier.training.dataset.samples import Dataset
    from lora_atelier.training.dataset.scan import scan

    draw(place / "pictures", options.pictures, options.resolution)
    config = SubsetConfig("input/pictures", resolution=options.resolution, batch_size=4)
    begin = time.perf_counter()
    dataset = Dataset(scan(place / "pictures", config))
    result: dict[str, Any] = {"threads": workers.WORKERS, "scan_seconds": time.perf_counter() - begin}
    say(result)
    pictures = encoded.work_of(Plan(dataset, 0), 1).pictures
    groups = [pictures[i : i + GROUP] for i in range(0, len(pictures), GROUP)]

    def read(group: Sequence[stream.Shown], ahead: bool) -> None:
        for _ in stream.batches(group, lambda _: 1, ahead):
            pass

    both = in_turns(groups, {"read_alone": lambda g: read(g, False), "read_ahead": lambda g: read(g, True)})
    result |= {name: sum(values) for name, values in both.items()}
    result["ratio_of_reading"] = ratio(both, "read")
    say(result)
    if Path("/proc/self/clear_refs").exists():
        reset_peak()
        before = peak_bytes()
        read(pictures[: 10 * GROUP], True)
        result["peak_mb"] = (peak_bytes() - before) / 2**20

    with torch.inference_mode():
        path = options.checkpoint or _common.demo_checkpoint()
        _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=True, output_model=False)
    codec, text = host.PictureCodec(vae), host.TextEncoder(clip)
    caches = iter(range(10**6))

    def prepare(group: Sequence[stream.Shown], on_cpu: bool) -> None:
        cache = TensorCache(place / f"cache{next(caches)}", 2**40)
        with patch.object(encoded.EncodedDataset, "_on_cpu", PropertyMock(return_value=on_cpu)):
            made = encoded.EncodedDataset(dataset, 0, codec, text, cache)
            made.prepare(encoded.Work(tuple(group), ()), lambda done: None)

    prepare(groups[0][:2], True)  # warms up
    whole = [pictures[i : i + options.group] for i in range(0, options.encoded, options.group)]
    both = in_turns(whole, {"prepared_alone": lambda g: prepare(g, True), "prepared_ahead": lambda g: prepare(g, False)})
    result |= {name: sum(values) for name, values in both.items()}
    result["ratio_of_preparing"] = ratio(both, "prepared")
    result |= {"encoded": options.encoded, "vae_dtype": str(vae.vae_dtype).removeprefix("torch.")}
    result["pictures_at_once"] = codec.at_once(options.resolution, options.resolution)
    for name, count in (
        ("scan_seconds", options.pictures),
        ("read_ahead", options.pictures),
        ("prepared_ahead", options.encoded),
    ):
        result[f"{name.removesuffix('_seconds')}_a_second"] = count / result[name]
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--encoded", type=int, help="of these also encoded; default: all on a GPU, else 24")
    parser.add_argument("--group", type=int, help="pictures of a turn of the whole; default: 200 on a GPU, else 4")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--checkpoint")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    options = parser.parse_args()
    _common.use_host()
    import torch

    gpu = torch.cuda.is_available()
    options.encoded = min(options.pictures, options.encoded or (options.pictures if gpu else 24))
    options.group = options.group or (200 if gpu else 4)
    logging.getLogger("lora-atelier").setLevel(logging.ERROR)
    result: dict[str, Any] = {**_common.machine(), "pictures": options.pictures, "resolution": options.resolution}
    with tempfile.TemporaryDirectory(prefix="preparing-bench-") as place:
        result |= measure(options, Path(place))
    for name, value in result.items():
        print(f"{name}: {value}")
    _common.finish("preparing", result, as_json=options.json, keep=options.save)


if __name__ == "__main__":
    main()
