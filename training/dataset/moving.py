"""Films that are drawn: how many frames there can be, which of them stands still for all, and animated WebP files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image

from ..errors import AtelierError, counted
from ..files import open_plain, replacing

RATE = 16
"""Frames a second where nobody says it: Wan's own."""
MOST = 1000
"""Frames of a film at most."""
QUALITY = 90
"""Of WebP where a frame need not be found again bit for bit."""
PLACES = ("first", "middle", "last")


@dataclass(frozen=True)
class Film:
    """What was drawn as a film; ``shown`` is the frame (from 0) that stands for it where nothing moves."""

    frames: tuple[Image.Image, ...]
    shown: int

    @property
    def still(self) -> Image.Image:
        return self.frames[self.shown]


def middle(count: int) -> int:
    """The frame, from 0, in the middle of so many; of an even number the first of the second half."""
    return count // 2


def frame_named(widget: str, said: str, count: int) -> int:
    """Which frame, from 0, ``first``, ``middle``, ``last`` or a number from 1 means in a film of so many."""
    said = said.strip().lower() or "middle"
    if said in PLACES:
        return {"first": 0, "middle": middle(count), "last": count - 1}[said]
    if not (said.isascii() and said.isdigit() and len(said) < 9):
        raise AtelierError(f"{widget}: {said!r} is no frame. Write first, middle, last or a number from 1.")
    if not 1 <= int(said) <= count:
        raise AtelierError(f"{widget}: there is no frame {said}, since {counted(count, 'frame')} are drawn. Write 1 to {count}.")
    return int(said) - 1


def nearest(count: int, into: Callable[[int], int], out: Callable[[int], int]) -> list[int]:
    """``[count]`` if a VAE makes exactly so many frames, else the nearest numbers below and above that it does make.

    ``into``: from frames to its latent's frames; ``out``: back.
    """
    makes = [n for n in range(1, 2 * count + 64) if out(into(n)) == n]
    if count in makes:
        return [count]
    below, above = [n for n in makes if n < count], [n for n in makes if n > count]
    return [*below[-1:], *above[:1]]


def durations(count: int, rate: float) -> list[int]:
    """Milliseconds of every frame, whole ones, of which the sum is as long as the film."""
    ends = [round(1000 * i / rate) for i in range(count + 1)]
    return [max(1, later - earlier) for earlier, later in pairwise(ends)]


def save(path: Path, frames: Sequence[Image.Image], rate: float, lossless: bool = False) -> None:
    """An animated WebP that begins again at its end."""
    how = {"lossless": True, "quality": 0, "method": 0} if lossless else {"quality": QUALITY, "method": 2}
    with replacing(path) as temporary:
        frames[0].save(
            temporary, format="WEBP", save_all=True, append_images=list(frames[1:]), duration=durations(len(frames), rate),
            loop=0, **how,
        )  # fmt: skip


def read(path: Path, count: int, rate: float = RATE) -> tuple[Image.Image, ...] | None:
    """The frames of a film that was saved so; None for a file that is not there, or holds something else.

    Frames that are alike lie in the file as one that stays longer, so they are found by the time at which they are shown.
    """
    times, frames = durations(count, rate), list[Image.Image]()
    try:
        with open_plain(path) as file, Image.open(file, formats=["WEBP"]) as film:
            if getattr(film, "n_frames", 1) == 1:  # all alike
                return (film.convert("RGB"),) * count
            for number in range(film.n_frames):
                film.seek(number)
                picture, stays = film.convert("RGB"), int(film.info.get("duration", 0))
                while len(frames) < count and stays >= times[len(frames)]:
                    stays -= times[len(frames)]
                    frames.append(picture)
    except Exception:  # of many kinds, whatever in the file is damaged
        return None
    return tuple(frames) if len(frames) == count else None
