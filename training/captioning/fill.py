"""Captioning a dataset: what is missing is written beside the pictures, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..dataset.captions import caption_path, read_caption, with_prefix, with_trigger, write_caption
from ..dataset.samples import Dataset, counted
from ..dataset.scan import refresh_captions
from ..dataset.stamps import remember, stamp
from .protocol import Captioner, Picture

Mode = Literal["fill missing", "overwrite"]
Advance = Callable[..., None]
"""``advance(done, preview)``; may raise to cancel."""


@dataclass(frozen=True)
class Report:
    """What was done to the caption files."""

    written: tuple[Path, ...]
    kept: int
    """Pictures whose caption file was there already."""
    empty: tuple[Path, ...]
    """Pictures for which the captioner found no words; nothing was written for them."""

    def describe(self, dataset: Dataset, examples: int = 5) -> str:
        """Counts, then a few of the captions."""
        lines = [f"{counted(len(self.written), 'caption')} written, {self.kept} kept"]
        if self.empty:
            lines.append(f"Note: no words were found for {', '.join(path.name for path in self.empty[:examples])}")
        shown = {sample.path: sample.caption for sample in dataset.samples if sample.caption is not None}
        lines += [f"{path.name}: {caption}" for path, caption in list(shown.items())[:examples]]
        if len(shown) > examples:
            lines.append(f"and {len(shown) - examples} more")
        return "\n".join(lines)


def missing(dataset: Dataset, mode: Mode) -> tuple[list[tuple[Picture, Path]], int]:
    """((picture, caption file) to be written, number kept).

    Files on the disk decide, not the dataset, whose captions may be older. A caption file that several pictures or subsets share
    is written once. An empty file is a caption that somebody left empty, and is kept.
    """
    files: dict[Path, Picture] = {}
    for subset in dataset.subsets:
        for sample in subset.samples:
            file = caption_path(sample.path, subset.config.caption_extension)
            files.setdefault(file, Picture(sample.path, subset.class_caption or ""))
    work = [(picture, file) for file, picture in files.items() if mode == "overwrite" or read_caption(file)[0] is None]
    return work, len(files) - len(work)


def fill(
    dataset: Dataset,
    captioner: Captioner,
    mode: Mode = "fill missing",
    prefix: str = "",
    trigger: str = "",
    batch_size: int = 1,
    progress: Callable[[int], Advance] | None = None,
) -> tuple[Dataset, Report]:
    """Write the captions, and return the dataset with the captions that are on the disk then.

    A caption is ``trigger``, then ``prefix`` followed by the captioner's text. ``progress(total)`` gives the function that is
    called after every batch; when it raises, what is written stays.
    """
    work, kept = missing(dataset, mode)
    advance = progress(len(work)) if progress and work else None
    written: list[Path] = []
    empty: list[Path] = []
    for start in range(0, len(work), batch_size):
        # Fresh pictures, so that the pixels of earlier batches are not kept.
        batch = [(Picture(picture.path, picture.class_caption), file) for picture, file in work[start : start + batch_size]]
        texts = captioner.caption([picture for picture, _ in batch])
        for (picture, file), text in zip(batch, texts, strict=True):
            if not text.strip():
                empty.append(picture.path)
                continue
            before = stamp(file)
            write_caption(file, with_trigger(trigger, with_prefix(prefix, text.strip())))
            remember(file, before)
            written.append(file)
        if advance:
            advance(start + len(batch), batch[0][0].seen)
    return refresh_captions(dataset), Report(tuple(written), kept, tuple(empty))
