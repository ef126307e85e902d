"""Films for tests, written by PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {".mp4": "libx264", ".mov": "mpeg4", ".m4v": "mpeg4", ".mkv": "ffv1", ".webm": "libvpx-vp9", ".avi": "mpeg4"}


def levels(count: int, size: tuple[int, int] = (64, 48), seed: int = 0) -> np.ndarray:
    """(T, H, W, 3): a coloured field over which a white square walks, so that no two frames are equal."""
    stream = np.random.default_rng(seed)
    width, height = size
    still = np.kron(stream.integers(0, 200, (2, 2, 3), np.uint8), np.ones((height // 2, width // 2, 1), np.uint8))
    found = np.stack([still] * count)
    for number in range(count):
        left = number * 3 % (width - 8)
        top = number * 3 // (width - 8) * 8 % (height - 8)
        found[number, top : top + 8, left : left + 8] = 255
    return found


def write(path: Path, frames: np.ndarray, rate: Fraction | int = 24, codec: str = "", **options: str) -> Path:
    """FFV1 keeps every level."""
    name = codec or CODECS[path.suffix.lower()]
    with av.open(path, "w") as container:
        stream = container.add_stream(name, rate=rate, options=options)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "bgr0" if name == "ffv1" else "yuv420p"
        for one in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        container.mux(stream.encode())
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """Every frame by PyAV's own way from the beginning."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
