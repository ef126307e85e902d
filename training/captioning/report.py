"""Report of what was done to the caption files, in words for the node."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..dataset.caption_reader import CaptionReader
from ..dataset.captions import arranged, caption_file_of, some
from ..dataset.samples import Dataset, Sample, Subset, counted, printable
from ..dataset.statement import Statement, Table
from ..dataset.tags import tag_frequency

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
    """What the person should look at."""
    remarks: tuple[str, ...] = ()
    """What is as it should be, and still worth knowing."""
    dry_run: bool = False
    foreseen: Dataset | None = None
    """The dataset as it would be after a dry run."""

    @property
    def written(self) -> tuple[Path, ...]:
        return () if self.dry_run else tuple(change.file for change in self.changes)

    def foreseeing(self, dataset: Dataset) -> Report:
        """The same report with the dataset that its changes would lead to."""
        after = {change.file: change.after for change in self.changes}

        def seen(sample: Sample, reader: CaptionReader) -> Sample:
            file = caption_file_of(sample.path, reader.config.caption_extension, sample.caption_file)
            if file not in after or not reader.config.captions:
                return sample
            return dataclasses.replace(sample, caption=reader.together(arranged(after[file], reader.config), sample.further))

        def foreseen(subset: Subset) -> Subset:
            reader = CaptionReader(subset.config)
            return dataclasses.replace(subset, samples=tuple(seen(sample, reader) for sample in subset.samples))

        subsets = map(foreseen, dataset.subsets)
        return dataclasses.replace(self, foreseen=Dataset(tuple(subsets)))

    def told(self, dataset: Dataset) -> Statement:
        """Counts, warnings, the captions (of a dry run: all changes), and how often each tag occurs."""
        verb = "would be written" if self.dry_run else "written"
        if not self.changes and not self.empty:
            counts = [f"nothing to write, {counted(self.kept, 'caption')} kept"]
        else:
            counts = [f"{counted(len(self.changes), 'caption')} {verb}, {self.kept} kept"]
        if self.dry_run:
            counts.append("Dry run: nothing was changed on the disk.")
        silent = [f"no words were found for {some([path.name for path in self.empty])}"] if self.empty else []
        captions = change_table(self.changes) if self.dry_run else caption_table(dataset)
        tables = (captions, frequency_table(self.foreseen or dataset))
        return Statement(tuple(counts), (*silent, *self.notes), self.remarks, tuple(table for table in tables if table.rows))

    def describe(self, dataset: Dataset) -> str:
        """The same as text."""
        return self.told(dataset).text()


def caption_table(dataset: Dataset, rows: int = TABLE_ROWS) -> Table:
    """The captions that there are."""
    there = {sample.path: sample.caption for sample in dataset.samples if sample.caption is not None}
    return Table.cut("captions", ("picture", "caption"), [(printable(p.name), text) for p, text in there.items()], rows)


def change_table(changes: tuple[Change, ...], rows: int = TABLE_ROWS) -> Table:
    """Picture, before and after; a caption that stays as it is says so."""
    return Table.cut("changes", ("picture", "before", "after"), [
        (
            printable(change.picture.name),
            "(none)" if change.before is None else change.before,
            "(the same)" if change.after == change.before else change.after,
        )
        for change in changes
    ], rows)  # fmt: skip


def frequency_table(dataset: Dataset, rows: int = TAG_ROWS) -> Table:
    """The tags, the most frequent first, counted as for ``ss_tag_frequency``; without rows where there are no tags."""
    tags: Counter[str] = Counter()
    for counts in tag_frequency(dataset).values():
        tags.update(counts)
    return Table.cut("tags", ("tag", "pictures"), [(tag, str(count)) for tag, count in tags.most_common()], rows)
