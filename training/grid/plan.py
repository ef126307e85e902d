"""Grid plan: which cells there are, and whether they can all be drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import sweep
from ..dataset.samples import some
from ..errors import AtelierError, counted
from ..runs.record import SavedLoRA
from ..runs.run import Epochs
from .axes import EpochChoice, EpochMean

MAX_CELLS = 1000
MAX_CELL_PIXELS = 50_000_000
PAGE_PIXELS = 40_000_000
"""Cells on one picture; a larger grid goes on on the next."""
PAGE_SIDE = 16_000
"""Pixels; many programs open nothing larger."""


@dataclass(frozen=True)
class Column:
    """One LoRA file of the grid, or the mean of several."""

    file: SavedLoRA
    """Of a mean the last one."""
    run: str
    """The name that its epochs share."""
    label: str
    recipe: str = ""
    """The name that the trainings of a sweep share."""
    varied: str = ""
    """What tells its run from the others of the sweep."""
    mean_of: tuple[SavedLoRA, ...] = ()
    """The files of which it is the mean, first to last; empty for a file that is shown as it is."""

    @property
    def paths(self) -> list[Path]:
        """Its files, first to last."""
        return [file.path for file in self.mean_of or (self.file,)]


@dataclass(frozen=True)
class Page:
    """What all cells of a page share."""

    prompt: str
    seed: int
    control: int = -1
    """Which control pictures it is beside; -1 for none."""


@dataclass(frozen=True)
class Axes:
    """What varies: a page a prompt and seed, a column a file (the first without any LoRA), a row a strength."""

    prompts: tuple[str, ...]
    columns: tuple[Column, ...]
    strengths: tuple[float, ...]
    seeds: tuple[int, ...]
    text_strength: float | None = None
    """Strength on the text encoder; None: that of the cell."""
    controls: tuple[int, ...] = ()
    """For models that edit: which control pictures each prompt is beside; empty for none."""

    @property
    def pages(self) -> list[Page]:
        places = self.controls or (-1,) * len(self.prompts)
        return [Page(prompt, seed, place) for prompt, place in zip(self.prompts, places, strict=True) for seed in self.seeds]

    @property
    def cells(self) -> int:
        """Pictures to sample: the control is sampled once a page and shown in every row."""
        return len(self.prompts) * len(self.seeds) * (1 + len(self.columns) * len(self.strengths))

    def on_text(self, strength: float) -> float:
        """What the text encoder gets where the model gets ``strength``."""
        return strength if self.text_strength is None else self.text_strength

    def together(self, most: int) -> tuple[int, int]:
        """(cells, files) that a batch of at most so many cells holds at most, on a page of which nothing is drawn yet."""
        rows = sum(strength != 0 or self.on_text(strength) != 0 for strength in self.strengths)
        cells = len(self.columns) * rows
        files = [len({i // rows for i in range(first, min(first + most, cells))}) for first in range(0, cells, most)]
        return min(most, max(1, cells)), max(files, default=1)

    @property
    def title(self) -> str:
        return ", ".join(dict.fromkeys(column.recipe or column.run for column in self.columns))

    @property
    def across(self) -> str:
        """What the columns are; by which settings, if all are of one sweep."""
        swept = sweep.axis([column.varied for column in self.columns]) if all(c.varied for c in self.columns) else ""
        return f"saved LoRAs by {swept}" if swept else "saved LoRAs"


def beside(prompts: Sequence[str], controls: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(prompts, the place of each one's control pictures): number i beside number i, and the last of the shorter row repeated.

    Without control pictures every prompt counts once.
    """
    if not controls:
        return tuple(dict.fromkeys(prompts)), ()
    count = max(len(prompts), controls)
    pairs = [(prompts[min(i, len(prompts) - 1)], min(i, controls - 1)) for i in range(count)]
    lines, places = zip(*dict.fromkeys(pairs), strict=True)
    return lines, places


def columns_of(runs: Sequence[Epochs], choice: EpochChoice) -> tuple[Column, ...]:
    """The chosen files of every run, in order, each once and each with a name of its own, and behind them the run's means;
    AtelierError when there are none, or no run has all files of a mean."""
    chosen = [(run, choice.of(run.files)) for run in runs]
    if not any(run.files for run in runs):
        raise AtelierError("epochs: there is no saved LoRA to show; train first, or name files in lora_files.")
    for mean in choice.means:
        if not any(_has(run, mean) for run in runs):
            raise AtelierError(f"{_lacking(runs, mean)} Write epochs that were saved, such as mean 2 4 6 or mean 2-6(+2).")
    if not any(files for _, files in chosen) and not choice.means_alone:
        raise AtelierError(f"which_epochs: none of {choice.text!r} was saved; there are {_there(runs)}.")
    shown = [run for run, files in chosen if files or any(_has(run, mean) for mean in choice.means)]
    swept = all(run.varied for run in shown) and len({run.recipe for run in shown}) == 1
    lasts = swept and all(len(files) == 1 and files[0].kind == "last" for _, files in chosen if files)
    out: dict[tuple[Path, ...], Column] = {}
    for run, files in chosen:
        name = sweep.label(run.varied) if swept else run.name
        own = (run.recipe, run.varied) if swept else ("", "")
        for file in files:
            numbered = bool(file.label) and (len(run.files) > 1 or file.kind != "last") and not (lasts and len(shown) > 1)
            label = file.label if numbered and len(shown) == 1 else f"{name} {file.label}" if numbered else name
            out.setdefault((file.path,), Column(file, run.name, label, *own))
        for mean in choice.means:
            if _has(run, mean):
                several = tuple(mean.of(run.files))
                label = mean.label if len(shown) == 1 else f"{name} {mean.label}"
                out.setdefault(tuple(file.path for file in several), Column(several[-1], run.name, label, *own, several))
    return _told_apart(list(out.values()))


def _has(run: Epochs, mean: EpochMean) -> bool:
    return not mean.missing(run.files) and len(mean.of(run.files)) > 1


def _lacking(runs: Sequence[Epochs], mean: EpochMean) -> str:
    """Why there is no such mean of these runs."""
    lacking = sorted({number for run in runs for number in mean.missing(run.files)})
    if not lacking:
        return f"which_epochs: {mean.label} would be one of a single file; there are {_there(runs)}."
    was = f"epoch {lacking[0]}, which was" if len(lacking) == 1 else f"the epochs {some(list(map(str, lacking)), 6)}, which were"
    return f"which_epochs: {mean.label} needs {was} not saved; there are {_there(runs)}."


def _told_apart(columns: Sequence[Column]) -> tuple[Column, ...]:
    """With the files' names behind labels that several have, and with numbers where even these are the same."""
    count = Counter(column.label for column in columns)
    named = [replace(c, label=f"{c.label} ({c.file.path.stem})") if count[c.label] > 1 else c for c in columns]
    seen: Counter[str] = Counter()
    out = []
    for column in named:
        seen[column.label] += 1
        again = seen[column.label]
        out.append(replace(column, label=f"{column.label} #{again}") if again > 1 else column)
    return tuple(out)


def remarks(runs: Sequence[Epochs], choice: EpochChoice, strengths: Sequence[float]) -> list[str]:
    """What of the axes is otherwise than one may think, in sentences."""
    out = []
    if any(run.files for run in runs) and (
        missing := [n for n in choice.single if all(n in choice.missing(r.files) for r in runs)]
    ):
        out.append(
            f"which_epochs: {_list(missing)} {'was' if len(missing) == 1 else 'were'} not saved; there are {_there(runs)}."
        )
    lacking = [(run, mean) for mean in choice.means for run in runs if run.files and not _has(run, mean)]
    out += [f"{run.name}: {_lacking([run], mean)}" for run, mean in lacking]
    twice = Counter(file.path for run in runs for file in choice.of(run.files))
    out += [f"{path.name} is named twice and shown once." for path, count in twice.items() if count > 1]
    if any(file.label == "unnumbered" for run in runs for file in run.files):
        out.append("An unnumbered file stands last, as trainers save it; it does not say after which epoch that was.")
    out += [f"{run.name}: it was not trained to its end. {run.failed}" for run in runs if run.failed]
    if 0 in strengths:
        out.append("strengths: at 0 a LoRA changes nothing, so that this row shows the picture without it.")
    return out


def _there(runs: Sequence[Epochs]) -> str:
    """The saved files' epochs, or their steps where no epoch is known, or how many there are."""
    files = [file for run in runs for file in run.files]
    if all(file.epoch and file.counted == file.epoch for file in files) or all(file.step and not file.epoch for file in files):
        return _list([file.counted for file in files])
    return _list([file.label or file.path.stem for file in files])


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))


def check_size(cells: int, width: int, height: int) -> None:
    """Refuses what would never end or never fit, before anything is rendered."""
    if cells > MAX_CELLS:
        raise AtelierError(
            f"This grid would have {cells} cells; at most {MAX_CELLS}. Use fewer epochs, strengths, prompts or seeds."
        )
    if width * height > MAX_CELL_PIXELS:
        raise AtelierError(
            f"A cell would have {width * height / 1e6:.0f} megapixels; at most {MAX_CELL_PIXELS / 1e6:.0f}. "
            "Use a smaller width and height."
        )


def spread(columns: int, rows: int, width: int, height: int) -> list[tuple[range, range]]:
    """(columns, rows) of every picture that a page is shown on, so that none has more than 40 megapixels or 16,000 pixels a side.

    ``columns`` does not count the control, which stands first on each of them. Rows stay together if they can.
    """
    tall = max(1, min(rows, PAGE_SIDE // height, PAGE_PIXELS // (2 * width * height)))
    wide = max(1, min(PAGE_SIDE // width, PAGE_PIXELS // (tall * width * height)) - 1)
    return [
        (range(x, min(columns, x + wide)), range(y, min(rows, y + tall)))
        for y in range(0, rows, tall)
        for x in range(0, max(1, columns), wide)
    ]


def describe_size(axes: Axes, width: int, height: int) -> str:
    """``61 cells of 512 x 512 px on 2 pages``."""
    pages = len(axes.pages)
    return f"{counted(axes.cells, 'cell')} of {width} x {height} px on {pages} page{'s' if pages > 1 else ''}"
