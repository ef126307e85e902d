"""Near-duplicate pictures by perceptual hash: a difference hash of 64 bits, and the mean colour beside it.

The hash is dHash (N. Krawetz, "Kind of Like That", 2013): the picture is shrunk to 9 x 8 grey pixels, and every bit says whether
a pixel is darker than its right neighbour. Plain areas have no such differences, so the mean colour has to agree as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

BITS = 3
"""Two hashes may differ in so many bits; saving a picture again as JPEG changes fewer."""
COLOUR = 8
"""Largest difference of the mean colours in one channel, of 255."""


def perceptual_hash(image: Image.Image) -> str:
    """22 hex digits: the hash (16), then the mean colour (6)."""
    small = list(image.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes())
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (small[row * 9 + column] < small[row * 9 + column + 1])
    return f"{bits:016x}" + image.convert("RGB").resize((1, 1), Image.Resampling.BOX).tobytes().hex()


def alike(one: str, other: str) -> bool:
    """Whether two ``look`` values belong to the same picture, as far as one can tell."""
    colours = zip(bytes.fromhex(one[16:]), bytes.fromhex(other[16:]), strict=True)
    return (int(one[:16], 16) ^ int(other[:16], 16)).bit_count() <= BITS and all(abs(a - b) <= COLOUR for a, b in colours)


def duplicates(looks: Sequence[str]) -> list[tuple[int, int]]:
    """(earlier, later) indices: each later picture with the first one that it looks like; empty looks are passed over.

    Hashes that differ in at most 3 of 64 bits agree in one of their four 16-bit parts, so only those are compared.
    """
    seen: dict[tuple[int, str], list[int]] = {}
    found = []
    for index, text in enumerate(looks):
        if not text:
            continue
        parts = [(i, text[4 * i : 4 * i + 4]) for i in range(4)]
        candidates = sorted({other for part in parts for other in seen.get(part, ())})
        first = next((other for other in candidates if alike(looks[other], text)), None)
        if first is not None:
            found.append((first, index))
            continue
        for part in parts:
            seen.setdefault(part, []).append(index)
    return found
