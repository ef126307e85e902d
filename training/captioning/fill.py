"""Captioning of a dataset: the texts are written beside the pictures, batch by batch.

Nothing that describes a picture gives way to something weaker. From strong to weak: a caption file; a line of a table or a text
that came with the picture; the words of a model that looks; the class caption; a file name. What ``overwrite`` replaces all the
same is kept, see ``originals``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..dataset.caption_reader import CaptionFile, CaptionReader
from ..dataset.captions import caption_file_of, put_caption, some
from ..dataset.change_stamps import remember, stamp
from ..dataset.encodings import writable
from ..dataset.samples import Dataset, counted, one_each
from ..dataset.scan import refresh_captions
from ..dataset.words import composed
from ..errors import AtelierError
from ..files import settle, shortened
from . import originals
from .existing import ExistingCaptioner
from .protocol import Captioner, CutShort, Picture
from .report import Change, Report
from .text import TextWork, appended, by_frequency, repeats
from .thoughts import declines

Mode = Literal["fill missing", "overwrite", "append"]
Advance = Callable[..., None]
"""``advance(done, preview)``; may raise to cancel."""
UNCHANGED = TextWork()
UNREADABLE = b"\0"


@dataclass(frozen=True)
class Task:
    """One caption file and the picture that it describes."""

    picture: Path
    class_caption: str
    file: Path
    found: CaptionFile | None = None
    """The file as it is; None without one."""
    before: str | None = None
    """What describes the picture now: its file, else its line in a table or the text that came with it; None without any."""
    others: tuple[Path, ...] = ()
    """Files that look like its caption and are not read."""
    declared: str = "detect"
    """``SubsetConfig.caption_encoding``."""
    below: str = ""
    """Lines of the file that are no part of the caption, and stay as they are."""
    film: bool = False
    """Whether the picture is a film, or moves and is used as one."""

    def fresh(self) -> Picture:
        """Without pixels, so that those of earlier batches are not kept."""
        return Picture(self.picture, self.class_caption, self.before, self.film)


@dataclass(frozen=True)
class Workload:
    """What there is to do, as the files on the disk say it now."""

    work: tuple[Task, ...]
    kept: tuple[Task, ...]
    """Those whose caption is left as it is."""
    passed_over: int = 0
    """Regularisation pictures, which nobody asked to caption."""
    notes: tuple[str, ...] = ()
    """What the person should know of the files."""
    remarks: tuple[str, ...] = ()
    """The same of files that are as they should be."""


def workload(dataset: Dataset, mode: Mode, regularisation: bool = False, only: Sequence[str] = ()) -> Workload:
    """Every caption file once, sorted into work and kept; AtelierError naming a caption file that cannot be read.

    Files on the disk decide, not the dataset, whose captions may be older; captions from a table or a node count like files. A
    caption file that several pictures or subsets share is written once. An empty file is a caption that somebody left empty,
    and is kept unless the mode is "overwrite". A picture whose caption seems to lie in a file that is not read is passed over.
    Latents are passed over, and so are regularisation sets unless ``regularisation`` is set: their class is their caption.
    ``only``: whole names (``input/cats/1.png``) or ends of the paths of those pictures that are meant; AtelierError for one that
    fits none.
    """
    if dataset.subsets and all(subset.ready for subset in dataset.subsets):
        raise AtelierError(
            "dataset: it holds latents with their conditioning, and no picture to caption. Take Auto Caption out of this row."
        )
    tasks: dict[Path, Task] = {}
    shared: list[str] = []
    notes: list[str] = []
    captioned = [s for s in dataset.subsets if regularisation or s.config.role != "regularisation"]
    meant = _meant(dataset, only)
    unheard = dict.fromkeys(s.config.folder for s in captioned if s.config.slider and s.config.slider.prompts)
    if unheard:
        notes.append(
            f"a slider that learns from prompts reads no captions, so those of {some(list(unheard))} are of no use to it. Take "
            "Auto Caption out of this row."
        )
    for subset in captioned:
        reader = CaptionReader(subset.config)
        for sample in subset.samples:
            file = caption_file_of(sample.path, subset.config.caption_extension, sample.caption_file)
            if sample.ready or (only and sample.path not in meant):
                continue
            if file in tasks:
                shared += [sample.path.name] if tasks[file].picture != sample.path else []
                continue
            found = reader.file(file)
            said = reader.said(file, found)
            others = () if found else tuple(path for path in reader.others(sample.path) if path not in sample.further)
            before = said if said is not None else sample.fallback
            if before is None and mode == "fill missing":  # nothing is missing then
                before = "\n".join(text for path in sample.further for text in reader.further(path)) or None
            below = found.text.partition("\n")[2] if found and subset.config.caption_lines == "first line" else ""
            tasks[file] = Task(
                sample.path, subset.class_caption or "", file, found, before, others, subset.config.caption_encoding, below,
                sample.stretch is not None,
            )  # fmt: skip
        notes += reader.notes()
    work: list[Task] = []
    kept: list[Task] = []
    for task in tasks.values():
        unread = task.before is None and bool(task.others)
        is_kept = {
            "fill missing": task.before is not None or unread, "append": task.before == "" or unread, "overwrite": False,
        }[mode]  # fmt: skip
        (kept if is_kept else work).append(task)
    passed_over = sum(len(one_each(s.samples)) for s in dataset.subsets) - sum(len(one_each(s.samples)) for s in captioned)
    notes += _notes(kept, shared)
    elsewhere = [task.picture.name for task in kept if task.before and not task.found]
    remarks = (f"kept, because a table, another file or another node describes them: {some(elsewhere)}.",) if elsewhere else ()
    return Workload(tuple(work), tuple(kept), passed_over, tuple(dict.fromkeys(notes)), remarks)


def _meant(dataset: Dataset, only: Sequence[str]) -> set[Path]:
    found: set[Path] = set()
    for name in only:
        those = _whole(dataset, name.strip("/")) or {s.path for s in dataset.samples if _ends(s.path, name)}
        if not those:
            raise AtelierError(f"only: {name!r} is no picture of this dataset. Write names such as cat.png, one a line.")
        found |= those
    return found


def _ends(path: Path, name: str) -> bool:
    return f"/{path.as_posix().lstrip('/')}".endswith(f"/{name.strip('/')}")


def _whole(dataset: Dataset, name: str) -> set[Path]:
    """The picture whose name begins with that of its dataset's folder, as ``input/cats/1.png`` does."""
    subsets = [s for s in dataset.subsets if s.config.folder and name.startswith(f"{s.config.folder}/")]
    below = name.partition("/")[2]  # where the root lies on this computer is not known here
    those = {s.path for subset in subsets for s in subset.samples if _ends(s.path, below)}
    return set(sorted(those, key=lambda path: len(path.parts))[:1])  # not input/cats/cats/1.png


def _notes(kept: Sequence[Task], shared: Sequence[str]) -> Iterable[str]:
    if shared:
        yield f"pictures that share a caption file with another one of their name, which alone was captioned: {some(shared)}."
    empty = [task.file.name for task in kept if task.found and not task.before]
    if empty:
        yield f"caption files without a word, which were kept: {some(empty)}. Delete them to have them filled."
    unread = [f"{task.others[0].name} beside {task.picture.name}" for task in kept if task.others and task.before is None]
    if unread:
        yield (
            f"left alone, because a file that is not read seems to be the caption: {some(unread)}. Set caption_extension to its "
            "ending, rename it, or choose overwrite, which leaves it as it is."
        )


class Filling:
    """The captions of one pass, as they are found and written."""

    def __init__(self, mode: Mode, text: TextWork, dry_run: bool) -> None:
        self.mode, self.text, self.dry_run = mode, text, dry_run
        self.bodies: dict[Task, list[str]] = {}
        """The lines of every caption, without prefix, suffix and trigger word."""
        self.finals: dict[Task, str] = {}
        self.empty: list[Path] = []
        self.by_class: list[Task] = []
        """Pictures whose class caption says more than their file's name."""
        self.classes_gone: list[str] = []
        self.cut: list[str] = []
        self.repeating: list[str] = []
        self.declined: list[str] = []
        self.kept_originals: list[str] = []
        self.as_utf8: list[str] = []
        self.meanwhile: list[str] = []
        """Caption files that somebody wrote while the captioner worked."""
        self.written: dict[Path, bytes] = {}

    def take(self, task: Task, said: str, looks: bool) -> None:
        """A captioner's words for a picture."""
        if not said.strip():
            self.empty.append(task.picture)
            return
        if looks and declines(said):
            self.empty.append(task.picture)
            self.declined.append(f"{task.picture.name} ({shortened(said.strip(), 80)})")
            return
        lines = [self.text.body(line) for line in self._lines(task, said)]
        final = self._framed(lines)
        says_class = composed(task.class_caption).casefold() in composed(final).casefold()
        if task.class_caption and task.before is None and not says_class:
            if not looks and self.mode == "fill missing":
                self.by_class.append(task)
                return
            self.classes_gone.append(task.picture.name)
        if looks:
            self.cut += [task.picture.name] if isinstance(said, CutShort) else []
            self.repeating += [task.picture.name] if repeats(said) else []
        self.bodies[task] = lines
        self._put(task, final)

    def reorder(self, kept: Sequence[Task]) -> None:
        """Puts the most frequent tags first in every caption that is written; those that are kept count, too."""
        flat = [line for lines in self.bodies.values() for line in lines]
        others = [self.text.bare(line) for task in kept for line in (task.before or "").split("\n")]
        ordered = iter(by_frequency([*flat, *others]))
        for task, lines in list(self.bodies.items()):
            self._put(task, self._framed([next(ordered) for _ in lines]))

    def remarks(self) -> Iterable[str]:
        """What was done on purpose."""
        if self.by_class:
            names = some([task.picture.name for task in self.by_class])
            yield (
                f"kept, because their class caption says more than a file name: {names}. Write {{folder}} into pattern to have "
                "both, or choose overwrite."
            )
        if self.kept_originals:
            yield f"what was there before is kept in {originals.FOLDER}: {some(self.kept_originals)}."
        if self.as_utf8:
            yield f"written anew as UTF-8: {some(self.as_utf8)}."

    def notes(self) -> Iterable[str]:
        """What the person should look at."""
        if self.classes_gone:
            yield (
                f"these captions take the place of a class caption and do not say it: {some(self.classes_gone)}. Write it into "
                "trigger or prefix if it is to stay."
            )
        if self.meanwhile:
            yield f"somebody wrote these while the captioner worked, and they were left as they are: {some(self.meanwhile)}."
        if self.declined:
            yield (
                f"the captioner declined, and nothing was written: {some(self.declined)}. Write these captions yourself, ask in "
                "other words, or choose another captioner."
            )
        if self.cut:
            yield f"cut off in the middle, because max_length was reached: {some(self.cut)}. Raise max_length, and read them."
        if self.repeating:
            yield f"the captioner repeats itself: {some(self.repeating)}. Read these captions."

    def _lines(self, task: Task, said: str) -> list[str]:
        """The words to work on: behind what is there already when appending, and without the frame of an earlier run."""
        if self.mode != "append":
            return [self.text.bare(line) for line in said.split("\n")]
        there = task.class_caption if task.before is None else task.before
        return [appended(self.text.bare(line), said.strip()) for line in there.split("\n")]

    def _framed(self, lines: Sequence[str]) -> str:
        return "\n".join(self.text.framed(line) for line in lines)

    def _put(self, task: Task, final: str) -> None:
        """Write a caption that differs from what the file says."""
        said = self.finals.get(task, task.before if task.found else None)
        self.finals[task] = final
        if self.dry_run or said == final:
            return
        found = task.found
        if _bytes_now(task.file) not in (self.written.get(task.file, found.data if found else None), UNREADABLE):
            self.meanwhile.append(task.file.name)
            del self.finals[task]
            self.bodies.pop(task, None)
            return
        own = found.encoding if found and not found.guessed else "utf-8"
        text = f"{final}\n{task.below}" if task.below else final
        data, encoding = writable(f"{text}\n", own, task.declared)
        if found and task.file not in self.written:
            originals.keep(task.file, found.data)
            self.kept_originals += [task.file.name] if found.data.strip() else []
            self.as_utf8 += [task.file.name] if encoding != found.encoding else []
        earlier = stamp(task.file)
        put_caption(task.file, data, durable=False)
        remember(task.file, earlier)
        self.written[task.file] = data


def _bytes_now(file: Path) -> bytes | None:
    """What the file holds, None without one, ``UNREADABLE`` where writing will say what is wrong."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return UNREADABLE


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
    only: Sequence[str] = (),
) -> tuple[Dataset, Report]:
    """Write the captions, and return the dataset with the captions that are on the disk then.

    ``progress(total)`` gives the function that is called before every batch with its first picture, and after the last; when it
    raises, what is written stays. ``show`` gets the name of the picture that is looked at. A dry run does everything but write.
    AtelierError naming a file whose encoding is a guess where its words would be written back.
    """
    todo = workload(dataset, mode, regularisation, only)
    if mode == "append" or isinstance(captioner, ExistingCaptioner):
        _refuse_guesses(todo.work)
    advance = progress(len(todo.work)) if progress and todo.work else None
    filling = Filling(mode, text, dry_run)
    try:
        for start in range(0, len(todo.work), batch_size):
            batch = [(task, task.fresh()) for task in todo.work[start : start + batch_size]]
            if advance:
                advance(start, batch[0][1].image if captioner.looks else None)
            if show:
                show(f"{batch[0][0].picture.name} ({start + 1} of {len(todo.work)})")
            words = captioner.caption([picture for _, picture in batch])
            for (task, _), said in zip(batch, words, strict=True):
                filling.take(task, said, captioner.looks)
        if advance:
            advance(len(todo.work))
        if text.order == "by frequency":
            filling.reorder((*todo.kept, *filling.by_class))
    finally:
        settle(list(filling.written))
    changes = tuple(Change(task.picture, task.file, task.before, final) for task, final in filling.finals.items())
    notes, remarks = [*todo.notes, *filling.notes()], [*todo.remarks, *filling.remarks()]
    if filling.empty and (reason := getattr(captioner, "silence", "")):
        notes.append(reason)
    if todo.passed_over:
        pictures = counted(todo.passed_over, "regularisation picture")
        remarks.append(f"{pictures} left alone; switch regularisation on to caption them too.")
    kept = len(todo.kept) + len(filling.by_class)
    report = Report(changes, kept, tuple(filling.empty), tuple(notes), tuple(remarks), dry_run)
    after = refresh_captions(dataset)
    if dry_run:
        report = report.foreseeing(after)
    return after, report


def _refuse_guesses(tasks: Sequence[Task]) -> None:
    guessed = [task for task in tasks if task.found and task.found.guessed and task.before]
    if guessed:
        names, encoding = some([task.file.name for task in guessed]), guessed[0].found.encoding if guessed[0].found else ""
        raise AtelierError(
            f"captions: {names}: that these files are {encoding.upper()} is a guess, and a guess is never written back. If it is "
            f"right, set caption_encoding on Load Dataset to {encoding}, or save the files as UTF-8."
        )
