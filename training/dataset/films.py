"""Films on the disk: how many frames, how fast, and single frames of them, by PyAV, which ComfyUI itself reads films with.

A film is read from an open file and by a list of known containers, so that none can make FFmpeg open other files or addresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import AtelierError
from ..files import Unreadable, open_plain

ENDINGS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})
"""Endings of the films that are read."""
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
NEAR = 48
"""Frames from the beginning that are rather decoded than jumped over."""
MAX_PIXELS = 178_956_970
USUAL_RATE = Fraction(24)
"""Of a film that does not say how fast it is."""


@dataclass(frozen=True)
class FilmFacts:
    """What a film is."""

    width: int
    """Pixels, turned as it is shown."""
    height: int
    frames: int
    rate: Fraction
    """Frames a second, on average."""


def is_film(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in ENDINGS


def header(path: Path) -> FilmFacts:
    """What the film's beginning says of it, which need not be exact; nothing is decoded but its first frame."""
    with _opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise _broken(path, "there is no frame in it")
        size = _upright(first)
        rate = _rate(stream)
        seconds = stream.duration * stream.time_base if stream.duration else Fraction((container.duration or 0), 1_000_000)
        return FilmFacts(*size, max(1, stream.frames or round(seconds * rate)), rate)


def look_at(path: Path) -> tuple[FilmFacts, Image.Image]:
    """The film, its frames counted by decoding them all, and its middle frame; AtelierError naming what cannot be read."""
    with _opened(path) as (container, stream):
        rate, size, count = _rate(stream), None, 0
        for frame in container.decode(stream):
            size, count = size or _upright(frame), count + 1
    if size is None:
        raise _broken(path, "there is no frame in it")
    if size[0] * size[1] > MAX_PIXELS:
        raise _broken(path, f"its frames have more than {MAX_PIXELS // 1_000_000} million pixels")
    film = FilmFacts(*size, count, rate)
    return film, next(frames_of(path, [count // 2], count))


def middle_frame(path: Path) -> Image.Image:
    """A frame from about the middle, in RGB."""
    about = header(path).frames // 2
    last: Image.Image | None = None
    for frame in frames_of(path, [about], 0, to_end=True):
        last = frame
    if last is None:
        raise _broken(path, "there is no frame in it")
    return last


def frames_of(path: Path, places: Sequence[int], of: int, *, to_end: bool = False) -> Iterator[Image.Image]:
    """The frames at ``places`` (from 0, ascending; some may come twice), RGB and turned as the film is shown.

    ``of``: how many the film has, by which is told whether its beginning can be jumped over; 0 where nobody knows. ``to_end``: a
    film that ends before gives its last frame. AtelierError naming a film that has fewer frames.
    """
    if of and places[0] > NEAR and (moments := _moments(path, *_stamp(path))) and len(moments) == of:
        found = _from_jump(path, places, moments)
        if found is not None:
            yield from found
            return
    yield from _from_start(path, places, to_end)


def _from_start(path: Path, places: Sequence[int], to_end: bool) -> Iterator[Image.Image]:
    waiting, frame = list(places), None
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number == waiting[0]:
                shown = _picture(frame)
                while waiting and waiting[0] == number:
                    yield shown
                    del waiting[0]
                if not waiting:
                    return
        if to_end and frame is not None:
            yield _picture(frame)
            return
    raise AtelierError(f"{path}: the film has changed since the folder was read. Queue the workflow again.")


def _from_jump(path: Path, places: Sequence[int], moments: Sequence[int]) -> list[Image.Image] | None:
    """The frames after a jump to the last whole frame before them; None where the film's times don't allow it.

    Only what follows a key frame in the order of showing is whole: frames before it may refer to what was jumped over.
    """
    number_of = {moment: number for number, moment in enumerate(moments)}
    wanted, found = set(places), dict[int, Image.Image]()
    with _opened(path) as (container, stream):
        try:
            container.seek(moments[places[0]], stream=stream, backward=True)
        except Exception:
            return None
        whole = False
        for frame in container.decode(stream):
            number = number_of.get(frame.pts)
            whole = whole or bool(frame.key_frame)
            if number is None or (number >= places[0] and not whole):
                return None
            if whole and not found and number > places[0]:
                return None
            if number in wanted and whole:
                found[number] = _picture(frame)
            if number >= places[-1]:
                break
    return [found[number] for number in places] if wanted == found.keys() else None


@lru_cache(maxsize=128)
def _moments(path: Path, _size: int, _changed: int) -> tuple[int, ...]:
    """When each frame is shown, in the film's own unit, without decoding; empty where its packets don't say."""
    with _opened(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size and not getattr(packet, "is_discard", False)]
        moments = {packet.pts for packet in packets if packet.pts is not None}
    return tuple(sorted(moments)) if len(moments) == len(packets) else ()


def near_middle(path: Path) -> Image.Image | None:
    """A frame from about half of the time, in RGB, for which few others are decoded.

    None where the film doesn't say how long it is, or cannot be sought in. AtelierError if it cannot be read.
    """
    with _opened(path) as (container, stream):
        found = _after_jump(container, stream) if container.duration else None
        return None if found is None else _picture(found)


def _after_jump(container: Any, stream: Any) -> Any:
    """The frame at half the time, or one at most ``NEAR`` frames behind the last key frame before; None if there is none."""
    half = Fraction((container.start_time or 0) + container.duration // 2, 1_000_000)
    nearly = half - Fraction(3, 4) / (stream.average_rate or USUAL_RATE)
    try:
        container.seek(int(half / stream.time_base), stream=stream, backward=True)
    except Exception:
        return None
    found = None
    for number, frame in enumerate(container.decode(stream)):
        if frame.key_frame or found is not None:  # what comes before may refer to frames that were jumped over
            found = frame
        if number >= NEAR or (found is not None and frame.time is not None and frame.time > nearly):
            break
    return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise _broken(path, error.strerror) from error
    return stat.st_size, stat.st_mtime_ns


def write_film(path: Path, frames: np.ndarray) -> None:
    """Writes frames (T, H, W, 3) of 8 bits as a Matroska film of FFV1 (RFC 9043), which keeps every level."""
    try:
        import av
    except ImportError as error:
        raise AtelierError(
            "clip_frames: films are written by the Python package av, which is missing here although ComfyUI needs it, too. "
            "Install it in ComfyUI's environment (pip install av) and restart."
        ) from error
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=USUAL_RATE)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first stream of pictures); what PyAV raises inside becomes a sentence about the file."""
    try:
        import av
    except ImportError as error:
        raise AtelierError(
            f"{path}: films are read by the Python package av, which is missing here although ComfyUI needs it, too. Install it "
            "in ComfyUI's environment (pip install av) and restart."
        ) from error
    try:
        with open_plain(path) as file, av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise _broken(path, "there are no pictures in it")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise _broken(path, "PyAV has no decoder for it")
            if stream.width * stream.height > MAX_PIXELS:
                raise _broken(path, f"its frames have more than {MAX_PIXELS // 1_000_000} million pixels")
            stream.thread_type = "AUTO"
            yield container, stream
    except (AtelierError, GeneratorExit):
        raise
    except Unreadable as error:
        raise _broken(path, error.why) from error
    except (OSError, ValueError, av.FFmpegError) as error:
        raise _broken(path, getattr(error, "strerror", None) or error) from error


def _broken(path: Path, reason: object) -> AtelierError:
    return AtelierError(f"{path}: this film cannot be read ({reason}). Repair it, or take it out of the folder.")


def _rate(stream: Any) -> Fraction:
    return next((Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate), USUAL_RATE)


def _turns(frame: Any) -> int:
    """Quarters by which a frame is turned, against the clock."""
    return round((getattr(frame, "rotation", 0) or 0) / 90) % 4


def _upright(frame: Any) -> tuple[int, int]:
    return (frame.height, frame.width) if _turns(frame) % 2 else (frame.width, frame.height)


def _picture(frame: Any) -> Image.Image:
    levels = frame.to_ndarray(format="rgb24")
    turned = np.ascontiguousarray(np.rot90(levels, _turns(frame))) if _turns(frame) else levels
    return Image.fromarray(turned)
