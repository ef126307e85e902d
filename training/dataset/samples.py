"""Dataset values once the folder has been read: immutable, as they travel on the canvas' wires."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..config import SubsetConfig, to_dict
from ..errors import counted as counted

LATER = {
    "wildcards": False, "further_captions": "", "trigger_words": "", "keep_separator": "", "dropped_caption": "empty",
    "clip_frames": "", "clip_start": "beginning", "clip_rate": 0.0,
}  # fmt: skip
"""Settings that came later, with what they were before: a dataset that does without them stays the same."""


def some(names: Sequence[str], most: int = 3) -> str:
    """ "a, b, c and 2 more", on one line whatever the names hold."""
    rest = len(names) - most
    return ", ".join(printable(name) for name in names[:most]) + (f" and {rest} more" if rest > 0 else "")


def contents(samples: Sequence[Sample]) -> str:
    """ "12 pictures", "3 films (5 clips of 17 frames) and 2 pictures"."""
    clips = [sample for sample in samples if sample.stretch]
    pictures = len(samples) - len(clips)
    if not clips:
        return counted(pictures, "picture")
    of = Counter(sample.frames for sample in clips)
    each = ", ".join(f"{counted(of[frames], 'clip')} of {counted(frames, 'frame')}" for frames in sorted(of))
    said = f"{counted(len({sample.path for sample in clips}), 'film')} ({each})"
    return f"{said} and {counted(pictures, 'picture')}" if pictures else said


def one_each(samples: Iterable[Sample]) -> list[Sample]:
    """Every picture, and of each film its first clip."""
    films, found = set[Path](), []
    for sample in samples:
        if sample.stretch is None or sample.path not in films:
            found.append(sample)
        if sample.stretch is not None:
            films.add(sample.path)
    return found


def printable(name: str) -> str:
    """The name with line breaks and the like, and bytes that are no text, as escapes: "a\\nb", "caf\\xe9"."""
    bare = "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in bare)


@dataclass(frozen=True)
class Ready:
    """A latent and a conditioning that other nodes made, by the keys under which they lie in the cache."""

    latent: str
    text: str
    channels: int
    """Channels of the latent, by which it is told whether it suits the model."""
    is_film: bool = False
    """Whether the latent has frames."""
    controls: int = 0
    """Control pictures in the conditioning."""
    cells: tuple[int, int] = (0, 0)
    """The latent's (width, height)."""


@dataclass(frozen=True)
class Stretch:
    """Which frames of a film a clip is."""

    film: str
    """SHA-256 (hex) of the film's file."""
    frames: tuple[int, ...]
    """Their places in the film, from 0 and in the order of showing."""
    of: int
    """Frames of the film."""
    rate: float = 0.0
    """Of the frames, shown one after the other, a second; 0 where nobody knows."""


@dataclass(frozen=True)
class Sample:
    """One picture, or one clip of a film, and its caption."""

    path: Path
    width: int
    """Pixels, after EXIF rotation."""
    height: int
    """Pixels, after EXIF rotation."""
    caption: str | None
    """None: neither a caption file nor a class caption; an empty text is a caption that somebody left empty; of several lines
    each is a caption."""
    key: str
    """SHA-256 (hex) of the file's bytes; of a clip, of these and of its frames."""
    fallback: str | None = None
    """Caption from a .jsonl file or from the node that made the dataset: what holds while there is no caption file."""
    focus: tuple[float, float] | None = None
    """Middle of what matters, in shares of width and height; only for the crop ``focus``."""
    mask: Path | None = None
    """File of the loss mask; the picture itself where its transparency is the mask."""
    mask_key: str = ""
    """SHA-256 (hex) of the mask's file."""
    look: str = field(default="", repr=False)
    """What near duplicates have in common (``near_duplicates.look_of``); empty where nobody asked."""
    ready: Ready | None = None
    """What stands for picture and caption where both came encoded; ``path`` is then the latent's file."""
    caption_file: Path | None = None
    """Caption file under another name than the usual one (``cat.TXT``, ``cat.jpg.txt``); it counts while there is no other."""
    further: tuple[Path, ...] = ()
    """Further caption files, whose texts are alternatives to the caption."""
    controls: tuple[Sample, ...] = ()
    """The pictures out of which an edit model is to make this one, in their order; they have neither caption nor mask."""
    before: Sample | None = None
    """The picture that stands for a slider's strength -1, where this one stands for 1."""
    head: tuple[float, float, float, float] | None = None
    """(left, top, right, bottom) of the face in shares of width and height; only for the crop ``head``, None without a face."""
    stretch: Stretch | None = None
    """Which frames of the file are the clip; None: it is a picture."""

    @property
    def frames(self) -> int:
        """Frames of the clip; 1 for a picture."""
        return len(self.stretch.frames) if self.stretch else 1

    @property
    def origin(self) -> str:
        """SHA-256 (hex) of the file, which several clips share."""
        return self.stretch.film if self.stretch else self.key


@dataclass(frozen=True)
class Subset:
    """The pictures of one folder with one group of settings."""

    config: SubsetConfig
    samples: tuple[Sample, ...]
    repeats: int
    """Sightings of every picture per epoch, resolved from the settings or the folder's name; at least 1."""
    class_caption: str | None = None
    """Text after the first ``_`` of an ``N_name`` folder, the caption of pictures without a caption file."""
    warnings: tuple[str, ...] = ()
    """What the person should know about this folder, one sentence each."""
    notes: tuple[str, ...] = ()
    """What else lies in the folder and is rightly not used, one sentence a kind."""
    passed_over: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """(name, why) of every file and folder there that is not used."""

    @property
    def ready(self) -> bool:
        """Whether the subset came encoded."""
        return any(sample.ready for sample in self.samples)

    @property
    def sightings(self) -> int:
        """Pictures shown per epoch, repeats included."""
        return len(self.samples) * self.repeats

    def describe(self) -> str:
        """One line for the node: folder, pictures, repeats, size and captions."""
        if self.ready:
            pairs = f"{counted(len(self.samples), 'latent')} x {self.repeats}, sizes as they are"
            return f"{self.config.folder}: {pairs}, batch {self.config.batch_size}, all with conditioning"
        without = sum(sample.caption is None for sample in one_each(self.samples))
        captions = "all with captions" if without == 0 else f"{without} without caption"
        with_controls = sum(bool(sample.controls) for sample in self.samples)
        if with_controls:
            captions += f", {'all' if with_controls == len(self.samples) else with_controls} with control pictures"
        width, height = self.config.fixed_size
        shape = (
            f"buckets around {width}" if self.config.buckets else f"square {width}" if width == height else f"{width} x {height}"
        )
        return (
            f"{self.config.folder}: {contents(self.samples)} x {self.repeats}, {shape} px, "
            f"batch {self.config.batch_size}, {captions}"
        )


@dataclass(frozen=True)
class Dataset:
    """Subsets in the order in which they were chained."""

    subsets: tuple[Subset, ...]

    def __add__(self, other: Dataset) -> Dataset:
        return Dataset(self.subsets + other.subsets)

    @property
    def samples(self) -> Iterable[Sample]:
        """Every sample of every subset, in order."""
        return (sample for subset in self.subsets for sample in subset.samples)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all subsets, each once."""
        return tuple(dict.fromkeys(warning for subset in self.subsets for warning in subset.warnings))

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all subsets, each once."""
        return tuple(dict.fromkeys(note for subset in self.subsets for note in subset.notes))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over settings, repeats, picture contents and captions; the pictures' places on the disk don't count."""
        digest = hashlib.sha256()
        for subset in self.subsets:
            settings = {**to_dict(subset.config), "repeats": subset.repeats}
            settings["slider"] = subset.config.slider.identity if subset.config.slider else None
            for late in ("slider", "fixed_height", "bucket_no_upscale"):  # without which a dataset stays what it was
                if not settings[late]:
                    del settings[late]
            if subset.config.crop != "head":  # which alone it means something for
                del settings["head_margin"]
            settings = {key: value for key, value in settings.items() if key not in LATER or value != LATER[key]}
            digest.update(json.dumps(settings, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            for sample in subset.samples:
                values: list[object] = [
                    sample.key,
                    sample.caption,
                    sample.mask_key,
                    sample.focus,
                    sample.ready and sample.ready.text,
                ]
                values += [sample.head] if sample.head else []
                values += [control.key for control in sample.controls]
                values += [f"before {sample.before.key}"] if sample.before else []
                digest.update(json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def describe(self) -> str:
        """Text summary for the node: one line a subset, the sum, then the warnings, then the notes."""
        lines = [*self.counts(), *(f"Note: {warning}" for warning in self.warnings)]
        return "\n".join(lines + [f"Also there: {note}" for note in self.notes])

    def counts(self) -> list[str]:
        """One line a subset, and the sum."""
        lines = [subset.describe() for subset in self.subsets]
        if len(self.subsets) > 1:
            lines.append(
                f"together: {contents(tuple(self.samples))}, {sum(s.sightings for s in self.subsets)} sightings an epoch"
            )
        return lines
