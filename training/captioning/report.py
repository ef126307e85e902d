"""Report of what was done to the caption files, in words for the node."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..dataset.captions import caption_file_of, some
from ..dataset.samples import Dataset, Sample, Subset, counted
from ..dataset.tags import tag_frequency

EXAMPLES = 5
TABLE_ROWS = 100
TAG_ROWS = 30


@dataclass(frozen=True)
class Change:
    """One caption file, before and after."""

    picture: Path
    file: Path
    before: str | None
    """None without a file."""
    after: str


@dataclass(frozen=True)
class Report:
    """What was done, or in a dry run would be done."""

    changes: tuple[Change, ...]
    kept: int
    """Caption files that were left as they are."""
    empty: tuple[Path, ...]
    """Pictures for which the captioner found no words; nothing was written for them."""
    notes: tuple[str, ...] = ()
    dry_run: bool = False
    foreseen: Dataset | None = None
    """The dataset as it would be after a dry run."""

    @property
    def written(self) -> tuple[Path, ...]:
        return () if self.dry_run else tuple(change.file for change in self.changes)

    def foreseeing(self, dataset: Dataset) -> Report:
        """The same report with the dataset that its changes would lead to."""
        after = {change.file: change.after for change in self.changes}

        def seen(sample: Sample, subset: Subset) -> Sample:
            file = caption_file_of(sample.path, subset.config.caption_extension, sample.caption_file)
            return dataclasses.replace(sample, caption=after.get(file, sample.caption)) if subset.config.captions else sample

        subsets = (dataclasses.replace(s, samples=tuple(seen(sample, s) for sample in s.samples)) for s in dataset.subsets)
        return dataclasses.replace(self, foreseen=Dataset(tuple(subsets)))

    def describe(self, dataset: Dataset, examples: int = EXAMPLES) -> str:
        """Counts, notes, a few captions (all changes of a dry run, as a table), and how often each tag occurs."""
        verb = "would be written" if self.dry_run else "written"
        if not self.changes and not self.empty:
            lines = [f"nothing to write, {counted(self.kept, 'caption')} kept"]
        else:
            lines = [f"{counted(len(self.changes), 'caption')} {verb}, {self.kept} kept"]
        if self.empty:
            lines.append(f"Note: no words were found for {some([path.name for path in self.empty])}")
        lines += [f"Note: {note}" for note in self.notes]
        if self.dry_run:
            lines += ["Dry run: nothing was changed on the disk.", "", *change_table(self.changes)]
        else:
            lines += _examples(dataset, examples)
        return "\n".join([*lines, *frequency_table(self.foreseen or dataset)])


def _examples(dataset: Dataset, number: int) -> list[str]:
    shown = {sample.path: sample.caption for sample in dataset.samples if sample.caption is not None}
    lines = [f"{path.name}: {caption}" for path, caption in list(shown.items())[:number]]
    return [*lines, f"and {len(shown) - number} more"] if len(shown) > number else lines


def change_table(changes: tuple[Change, ...], rows: int = TABLE_ROWS) -> list[str]:
    """A Markdown table of picture, before and after; a caption that stays as it is says so."""
    lines = ["| picture | before | after |", "| --- | --- | --- |"]
    for change in changes[:rows]:
        before = "(none)" if change.before is None else change.before
        after = "(the same)" if change.after == change.before else change.after
        lines.append(f"| {_cell(change.picture.name)} | {_cell(before)} | {_cell(after)} |")
    return [*lines, f"and {len(changes) - rows} more"] if len(changes) > rows else lines


def frequency_table(dataset: Dataset, rows: int = TAG_ROWS) -> list[str]:
    """A Markdown table of the tags, the most frequent first, counted as for ``ss_tag_frequency``; empty without tags."""
    tags: Counter[str] = Counter()
    for counts in tag_frequency(dataset).values():
        tags.update(counts)
    if not tags:
        return []
    lines = ["", "| tag | pictures |", "| --- | --- |", *(f"| {_cell(tag)} | {count} |" for tag, count in tags.most_common(rows))]
    return [*lines, f"and {len(tags) - rows} more"] if len(tags) > rows else lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or "(empty)"
