"""Clips: which frames of a film are trained on (a pure function of the film and the settings), and reading them.

The ways to choose are the field's: ``beginning``, ``chunks`` and ``evenly`` are musubi-tuner's ``head``, ``chunk`` and
``uniform``, and with ``middle`` diffusion-pipe's ``single_beginning``, ``single_middle`` and ``multiple_overlapping``. As there,
a film is sorted to the largest number of frames that it has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from PIL import Image

from ..config import SubsetConfig
from . import films
from .films import FilmFacts
from .images import frames_of_picture, open_picture
from .samples import Sample, Stretch


def clips_of(sample: Sample, film: FilmFacts, config: SubsetConfig) -> list[Sample]:
    """A sample for every clip of a film, whose whole is ``sample``; none where it is too short.

    The first alone keeps its look, by which near duplicates are told.
    """
    found: list[Sample] = []
    for frames in stretches(film.frames, film.rate, config):
        stretch = Stretch(sample.key, frames, film.frames, _rate_told(config, film))
        look = "" if found else sample.look
        found.append(replace(sample, key=_key(stretch), stretch=stretch, look=look))
    return found


def _rate_told(config: SubsetConfig, film: FilmFacts) -> float:
    """Frames a second of a clip. Those of a film in whole numbers: cameras write 29.97 or 30.012, and clips of one rate go
    through a model together."""
    return config.clip_rate or float(round(film.rate)) or float(film.rate)


def stretches(frames: int, rate: Fraction, config: SubsetConfig) -> list[tuple[int, ...]]:
    """The frames of each clip, by their places in a film of so many ``frames`` at ``rate`` a second.

    With ``clip_rate`` the frame that is nearest in time stands for each moment, so that motion keeps its speed.
    """
    pace = rate / Fraction(str(config.clip_rate)) if config.clip_rate else Fraction(1)
    # So many moments 0, pace, 2 pace ... lie within the film.
    length = int((frames - 1) / pace) + 1
    count = max((count for count in config.clip_counts if count <= length), default=0)
    if not count:
        return []
    free = length - count
    if config.clip_start == "beginning":
        starts = [0]
    elif config.clip_start == "middle":
        starts = [free // 2]
    elif config.clip_start == "chunks":
        starts = [i * count for i in range(length // count)]
    else:
        several = -(-length // count)
        starts = [free * i // (several - 1) for i in range(several)] if several > 1 else [0]
    places = [min(frames - 1, int(moment * pace + Fraction(1, 2))) for moment in range(length)]
    return [tuple(places[start : start + count]) for start in starts]


def is_slow(film: FilmFacts, config: SubsetConfig) -> bool:
    """Whether a film has fewer frames a second than are wanted, so that some come twice."""
    return bool(config.clip_rate) and film.rate < Fraction(str(config.clip_rate)) * Fraction(99, 100)


def frames_of(path: Path, stretch: Stretch) -> Iterator[Image.Image]:
    """The clip's frames in RGB, turned as they are shown; AtelierError naming a film that cannot be read or has fewer."""
    if films.is_film(path):
        return films.frames_of(path, stretch.frames, stretch.of)
    return frames_of_picture(path, stretch.frames)


def middle_of(path: Path, of: int) -> Image.Image:
    """The middle one of ``of`` frames, in RGB; AtelierError as for ``frames_of``."""
    return next(frames_of(path, Stretch("", (of // 2,), of)))


def about_middle(path: Path) -> Image.Image:
    """A frame from about the middle of a film whose frames nobody has counted, in RGB; AtelierError if it cannot be read.

    Few frames are decoded, from the last key frame before half the time; where the film doesn't say how long it is, or cannot be
    sought in, all from its beginning.
    """
    return films.near_middle(path) or open_picture(path)


def _key(stretch: Stretch) -> str:
    said = json.dumps(["clip", stretch.film, stretch.frames])
    return hashlib.sha256(said.encode()).hexdigest()
