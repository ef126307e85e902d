"""Seeded randomness: every random draw of a run is a pure function of (seed, step) or of (seed, picture, sighting).

That is what makes a resumed run equal to an uninterrupted one; no draw may come from a global generator.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor

EVEN = 0x6576656E
"""Keeps the place where even numbers begin apart from other draws of the first step."""
GOLDEN = (5**0.5 - 1) / 2


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments, so that step k draws the same numbers after a resume.

    The mixing is SplitMix64's finaliser, which spreads neighbouring steps over the whole seed space.
    """
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + stream * 0x8CB92BA72F3D8DD7 + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return torch.Generator().manual_seed((z ^ (z >> 31)) & (2**63 - 1))


def even_place(seed: int, step: int) -> float:
    """A number in [0, 1) for a step; those of consecutive steps lie evenly, wherever one begins to count.

    A Kronecker sequence with the golden ratio, whose discrepancy is the least of its kind (Niederreiter 1992, section 3.1), from
    a place that the seed decides.
    """
    start = float(torch.rand((), generator=step_generator(seed, 0, EVEN), dtype=torch.float64))
    return (start + step * GOLDEN) % 1.0


def first_weights(seed: int) -> torch.Generator:
    """A CPU generator for the weights that an adapter begins with."""
    return torch.Generator().manual_seed(seed & (2**63 - 1))


def epoch_order(seed: int, epoch: int) -> random.Random:
    """A generator for the order of an epoch's pictures and batches."""
    return random.Random(seed + epoch)


def picture_random(*parts: object) -> random.Random:
    """A generator that depends on nothing but ``parts``, equal on every computer."""
    text = ":".join(str(part) for part in parts)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big"))


def crop_draw(seed: int, epoch: int, sample_key: str) -> tuple[float, float]:
    """Two numbers in [0, 1) that depend on nothing but the arguments.

    They are the first two 53-bit halves of SHA-256("<seed>:<epoch>:<key>"), so a resumed run crops as the first one did.
    """
    digest = hashlib.sha256(f"{seed}:{epoch}:{sample_key}".encode()).digest()
    x, y = (int.from_bytes(digest[i : i + 8], "big") >> 11 for i in (0, 8))
    return x / 2**53, y / 2**53


def fixed_noise(key: str, level: int, shape: Sequence[int]) -> Tensor:
    """The noise of the picture with this ``key`` at the ``level``-th level: the same in every run and every batch."""
    seed = int.from_bytes(hashlib.sha256(f"validation:{key}".encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return torch.randn(tuple(shape), generator=step_generator(seed, level))


def rank(*parts: object) -> bytes:
    """A place in an order by chance that depends on nothing but ``parts``: SHA-256 of "<part>:<part>"."""
    return hashlib.sha256(":".join(str(part) for part in parts).encode("utf-8", "surrogatepass")).digest()
