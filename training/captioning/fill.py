"""Captioning of a dataset: the texts are written beside the pictures, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..dataset.captions import caption_path, read_caption, write_caption
from ..dataset.change_stamps import remember, stamp
from ..dataset.samples import Dataset, counted
from ..dataset.scan import refresh_captions
from ..errors import AtelierError
from .protocol import Captioner, Picture
from .report import Change, Report
from .text import TextWork, appended, by_frequency

Mode = Literal["fill missing", "overwrite", "append"]
Advance = Callable[..., None]
"""``advance(done, preview)``; may raise to cancel."""
UNCHANGED = TextWork()


@dataclass(frozen=True)
class Task:
    """One caption file and the picture that it describes."""

    picture: Path
    class_caption: str
    file: Path
    before: str | None
    """What the file says; None without a file."""
    note: str | None = None
    """A word on the file's encoding."""

    def fresh(self) -> Picture:
        """Without pixels, so that those of earlier batches are not kept."""
        return Picture(self.picture, self.class_caption, self.before)


@dataclass(frozen=True)
class Workload:
    """What there is to do, as the files on the disk say it now."""

    work: tuple[Task, ...]
    kept: tuple[Task, ...]
    """Those whose caption file is left as it is."""
    passed_over: int = 0
    """Regularisation pictures, which nobody asked to caption."""


def workload(dataset: Dataset, mode: Mode, regularisation: bool = False) -> Workload:
    """Every caption file once, sorted into work and kept; AtelierError naming a caption file that cannot be read.

    Files on the disk decide, not the dataset, whose captions may be older. A caption file that several pictures or subsets share
    is written once. An empty file is a caption that somebody left empty, and is kept unless the mode is "overwrite". Latents
    are passed over, and so are regularisation sets unless ``regularisation`` is set: their class is their caption.
    """
    if dataset.subsets and all(subset.ready for subset in dataset.subsets):
        raise AtelierError(
            "dataset: it holds latents with their conditioning, and no picture to caption. Take Auto Caption out of this row."
        )
    tasks: dict[Path, Task] = {}
    captioned = [s for s in dataset.subsets if regularisation or s.config.role != "regularisation"]
    for subset in captioned:
        for sample in subset.samples:
            file = caption_path(sample.path, subset.config.caption_extension)
            if file in tasks or sample.ready:
                continue
            before, note = read_caption(file)
            tasks[file] = Task(sample.path, subset.class_caption or "", file, before, note)
    work: list[Task] = []
    kept: list[Task] = []
    for task in tasks.values():
        is_kept = {"fill missing": task.before is not None, "append": task.before == "", "overwrite": False}[mode]
        (kept if is_kept else work).append(task)
    everything = sum(len(subset.samples) for subset in dataset.subsets)
    return Workload(tuple(work), tuple(kept), everything - sum(len(subset.samples) for subset in captioned))


def fill(
    dataset: Dataset,
    captioner: Captioner,
    mode: Mode = "fill missing",
    text: TextWork = UNCHANGED,
    batch_size: int = 1,
    progress: Callable[[int], Advance] | None = None,
    show: Callable[[str], None] | None = None,
    dry_run: bool = False,
    regularisation: bool = False,
) -> tuple[Dataset, Report]:
    """Write the captions, and return the dataset with the captions that are on the disk then.

    ``progress(total)`` gives the function that is called before every batch with its first picture, and after the last; when it
    raises, what is written stays. ``show`` gets the name of the picture that is looked at. A dry run does everything but write.
    """
    todo = workload(dataset, mode, regularisation)
    advance = progress(len(todo.work)) if progress and todo.work else None
    bodies: dict[Task, str] = {}
    finals: dict[Task, str] = {}
    empty: list[Path] = []
    for start in range(0, len(todo.work), batch_size):
        batch = [(task, task.fresh()) for task in todo.work[start : start + batch_size]]
        if advance:
            advance(start, batch[0][1].image if captioner.looks else None)
        if show:
            show(f"{batch[0][0].picture.name} ({start + 1} of {len(todo.work)})")
        words = captioner.caption([picture for _, picture in batch])
        for (task, _), said in zip(batch, words, strict=True):
            if not said.strip():
                empty.append(task.picture)
                continue
            bodies[task] = text.body(_with_existing(task, text, said, mode))
            finals[task] = text.framed(bodies[task])
            # A file in another encoding is written anew even when its words stay.
            _put(task.file, None if task.note else task.before, finals[task], dry_run)
    if advance:
        advance(len(todo.work))
    if text.order == "by frequency":
        others = [text.bare(task.before or "") for task in todo.kept]
        for task, ordered in zip(bodies, by_frequency([*bodies.values(), *others]), strict=False):
            before, finals[task] = finals[task], text.framed(ordered)
            _put(task.file, before, finals[task], dry_run)
    changes = tuple(Change(task.picture, task.file, task.before, final) for task, final in finals.items())
    notes = [task.note for task in (*todo.kept, *todo.work) if task.note and (dry_run or task not in finals)]
    notes += [f"{task.note.partition(';')[0]} and written anew as UTF-8." for task in finals if task.note and not dry_run]
    if todo.passed_over:
        pictures = counted(todo.passed_over, "regularisation picture")
        notes.append(f"{pictures} left alone; switch regularisation on to caption them too.")
    report = Report(changes, len(todo.kept), tuple(empty), tuple(notes), dry_run)
    after = refresh_captions(dataset)
    if dry_run:
        report = report.foreseeing(after)
    return after, report


def _with_existing(task: Task, text: TextWork, said: str, mode: Mode) -> str:
    """The words to work on: behind what is there already when appending, and without the frame of an earlier run."""
    if mode == "append":
        return appended(text.bare(task.before or ""), said.strip())
    return text.bare(said)


def _put(file: Path, before: str | None, caption: str, dry_run: bool) -> None:
    """Write a caption that differs from what the file says."""
    if dry_run or before == caption:
        return
    earlier = stamp(file)
    write_caption(file, caption)
    remember(file, earlier)
