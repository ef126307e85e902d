"""Steps of an epoch before the dataset is read: from the names in the folders and the pictures' headers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from ..config import Crop, SliderSource, SubsetConfig
from ..errors import AtelierError
from .buckets import Size
from .clips import clips_of
from .controls import whole_size
from .films import FilmFacts, header, is_film
from .heads import DETECTOR, Box
from .images import picture_size, timing_of
from .index import Index
from .plan import Plan
from .samples import Dataset, Sample, Subset
from .scan import repeats_of
from .walk import find


@dataclass(frozen=True)
class SubsetSource:
    """What one Load Dataset node is set to."""

    config: SubsetConfig
    folder: Path
    root: Path
    index: Path
    """File of ``Index``, in which pictures are found that were looked into before."""
    slider: SliderSource | None = None
    """From what a slider is learnt on these pictures; None where none is."""

    def sliding(self, slider: SliderSource) -> SubsetSource:
        """The same as Slider Dataset uses it: whatever its role, all of it is trained on."""
        config = dataclasses.replace(self.config, role="training", validation_share=0.0)
        return dataclasses.replace(self, config=config, slider=slider)

    @property
    def shows_controls(self) -> bool:
        """Whether control pictures stand beside the others; those of a slider are its other end."""
        return self.slider != "pairs of pictures"


def steps_per_epoch(sources: Sequence[SubsetSource]) -> int:
    """As ``Plan.steps_per_epoch`` once the nodes have run.

    No picture is decoded. A validation share is drawn by the contents of files, which nobody has read for pictures that are new:
    which of them are held out may then be others, so a step more or less is possible. Raises AtelierError as the nodes would.
    """
    return Plan(Dataset(tuple(subset for source in sources for subset in _subsets(source))), 0).steps_per_epoch


def pairs(sources: Sequence[SubsetSource]) -> int | None:
    """Pictures that have control pictures, by the names of files; None where they can have none.

    AtelierError as the nodes would.
    """
    beside = [one for one in sources if one.shows_controls]
    if not beside:
        return None
    every = (find(one.folder, one.root, one.config.nested, one.config.caption_extension) for one in beside)
    return sum(len(found.controls) for folders in every for found in folders)


def controls(sources: Sequence[SubsetSource]) -> tuple[Size, ...]:
    """(width, height) of each control picture of one picture, the one beside which there are most pixels; as they are shown."""
    found: list[tuple[Size, ...]] = [()]
    for source in (one for one in sources if one.shows_controls):
        index = Index(source.index)
        for folder in find(source.folder, source.root, source.config.nested, source.config.caption_extension):
            for group in folder.controls.values():
                with suppress(AtelierError):  # told where pictures are read
                    found.append(tuple(whole_size(*_known(path, index)[:2]) for path in group))
    return max(found, key=lambda group: sum(width * height for width, height in group))


def _subsets(source: SubsetSource) -> list[Subset]:
    index, out = Index(source.index), []
    crop: Crop = "head" if source.config.crop == "head" else "center"
    config = dataclasses.replace(source.config, crop=crop, masks="off")
    for found in find(source.folder, source.root, config.nested, config.caption_extension, bool(config.clip_counts)):
        samples: list[Sample] = []
        for path in found.pictures:
            try:
                width, height, key = _known(path, index)
            except AtelierError:
                if config.broken == "stop":
                    raise
                continue
            whole = Sample(path, width, height, None, key, head=_head(path, index) if crop == "head" else None)
            film = _film(path, index) if config.clip_counts else None
            samples += [whole] if film is None else clips_of(whole, film, config)
        out.append(Subset(config, tuple(samples), repeats_of(found, config)[0]))
    return out


def _film(path: Path, index: Index) -> FilmFacts | None:
    """What a film is, by its header where it was never read."""
    facts = index.remembered(path)
    if facts is not None and (facts.film or not facts.several):
        return FilmFacts(facts.width, facts.height, facts.film[0], Fraction(*facts.film[1:])) if facts.film else None
    stat = path.stat()
    return _unread_film(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=20_000)
def _unread_film(path: Path, _size: int, _changed: int) -> FilmFacts | None:
    if is_film(path):
        return header(path)
    frames, rate = timing_of(path)
    return FilmFacts(*picture_size(path), frames, rate) if frames > 1 else None


def _head(path: Path, index: Index) -> Box | None:
    """The face; one that takes the whole picture where nobody has looked yet, since most pictures of such a set have one."""
    facts = index.remembered(path)
    if facts is not None and DETECTOR in facts.heads:
        return facts.face.box if facts.face else None
    return 0.0, 0.0, 1.0, 1.0


def _known(path: Path, index: Index) -> tuple[int, int, str]:
    """(width, height, key); the path stands for the key of a picture that was never read."""
    facts = index.remembered(path)
    if facts is not None:
        return facts.width, facts.height, facts.key
    try:
        stat = path.stat()
    except OSError as error:
        raise AtelierError(f"{path}: this picture cannot be read ({error.strerror}). Allow it, or remove it.") from error
    return *_header(path, stat.st_size, stat.st_mtime_ns), str(path)


@lru_cache(maxsize=20_000)
def _header(path: Path, _size: int, _changed: int) -> tuple[int, int]:
    if is_film(path):
        found = header(path)
        return found.width, found.height
    return picture_size(path)
