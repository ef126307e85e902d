"""Dataset report: what a person should know about pictures before training on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import AtelierError
from .controls import whole_size
from .focus import NO_FACES, finds_faces
from .near_duplicates import duplicates
from .plan import Plan, bucket_name, size_of
from .samples import Dataset, Sample, Subset, counted, one_each, printable, some
from .statement import Statement, Table
from .views import View, view

ENLARGED = 2.0
"""A picture that is enlarged more than this looks soft, and the softness is learnt."""
TINY = 0.25
"""Share of the resolution's area below which a picture that is not enlarged is learnt at a size that no one draws at."""
CUT = 0.25
"""A picture that loses more than this share of its area has an unusual shape."""
OTHER_SHAPE = 1.1
"""Factor between the proportions of a picture and of what it is made from, from which on something is moved or stretched."""
OTHER_SIZE = 3.0
"""Factor between their areas, as they are shown, from which on one shows details that the other has no pixels for."""


@dataclass(frozen=True)
class Inspected:
    """One picture as it will be trained on; the first sighting where that is left to chance."""

    path: Path
    subset: int
    repeats: int
    shown: View
    caption: str | None
    controls: tuple[Sample, ...] = ()

    @property
    def name(self) -> str:
        """Of the file, and which of its frames."""
        stretch = self.shown.stretch
        which = f" ({stretch.frames[0] + 1}–{stretch.frames[-1] + 1})" if stretch else ""
        return printable(self.path.name) + which

    @property
    def enlarged(self) -> float:
        """Factor by which the picture is scaled; 0.5 halves its sides."""
        return max(s / o for s, o in zip(self.shown.scaled, self.shown.original, strict=True))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the part that is kept, in pixels of the picture."""
        (left, top), (width, height) = self.shown.crop, self.shown.size
        x, y = (o / s for o, s in zip(self.shown.original, self.shown.scaled, strict=True))
        right, bottom = min(self.shown.original[0], round((left + width) * x)), min(
            self.shown.original[1], round((top + height) * y)
        )  # fmt: skip
        return round(left * x), round(top * y), right, bottom

    @property
    def cut(self) -> float:
        """Share of the picture's area that is cut off."""
        kept, whole = self.shown.size, self.shown.scaled
        return 1 - kept[0] * kept[1] / (whole[0] * whole[1])

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values for the canvas."""
        return {
            "name": self.name, "subset": self.subset + 1, "repeats": self.repeats, "size": self.shown.original,
            "bucket": self.shown.size, "box": self.box, "caption": self.caption, "enlarged": round(self.enlarged, 2),
        }  # fmt: skip


def inspect(dataset: Dataset) -> list[Inspected]:
    """Every picture in the order of the folders."""
    return [
        Inspected(sample.path, number, subset.repeats, _view(sample, subset), sample.caption, sample.controls)
        for number, subset in enumerate(dataset.subsets)
        for sample in subset.samples
    ]


def _view(sample: Sample, subset: Subset) -> View:
    return view(sample, subset.config, size_of(sample, subset.config))


def remarks(subset: Subset) -> list[str]:
    """One sentence for each kind of oddity among the subset's pictures, naming the first few; a film counts once."""
    samples = one_each(subset.samples)
    pictures = inspect(Dataset((replace(subset, samples=tuple(samples)),)))
    soft = [p for p in pictures if p.enlarged > ENLARGED]
    small = [p for p in pictures if 1 < p.enlarged <= ENLARGED]
    least = TINY * math.prod(subset.config.fixed_size) if subset.config.bucket_no_upscale else 0
    tiny = [p for p in pictures if math.prod(p.shown.size) < least]
    odd = [p for p in pictures if p.cut > CUT and not p.shown.side]  # around a head most is cut off on purpose
    bare = [p.path for p in pictures if p.caption is None]
    pairs = duplicates([sample.look for sample in samples])
    said = []
    if soft:
        details = [f"{p.path.name} ({p.shown.original[0]} x {p.shown.original[1]}, {p.enlarged:.1f} times)" for p in soft]
        said.append(f"too small, enlarged more than twice and therefore soft: {some(details)}.")
    if small:
        most = max(p.enlarged for p in small)
        said.append(f"{counted(len(small), 'picture')} smaller than the bucket, enlarged at most {most:.1f} times.")
    if tiny:
        details = [f"{p.path.name} ({_sides(p.shown.size)})" for p in tiny]
        said.append(
            f"trained on at less than a quarter of the resolution's area, since bucket_no_upscale is on ({len(tiny)}): "
            f"{some(details)}. A model learns to draw small and coarse there; bring larger ones, or take them out."
        )
    if odd:
        details = [f"{p.path.name} ({p.cut:.0%} cut off)" for p in odd]
        said.append(f"unusual shape: {some(details)}.")
    if pairs:
        names = [f"{samples[b].path.name} looks like {samples[a].path.name}" for a, b in pairs]
        said.append(f"may be duplicates ({len(pairs)}): {some(names)}.")
    if bare and len(bare) < len(pictures):
        said.append(f"no caption: {some([path.name for path in bare])}.")
    if subset.config.crop == "focus" and not finds_faces():
        said.append(NO_FACES)
    return [*said, *_of_controls(pictures)]


def _of_controls(pictures: Sequence[Inspected]) -> list[str]:
    """Where a picture and what it is made from, its first control picture, differ in shape or size."""
    pairs = [(picture, picture.controls[0]) for picture in pictures if picture.controls]
    unlike = [(one, control) for one, control in pairs if _factor(*one.shown.original, control) > OTHER_SHAPE]
    sizes = [(one, whole_size(control.width, control.height)) for one, control in pairs]
    larger, smaller = (
        [(one, size) for one, size in sizes if (math.prod(size) / math.prod(one.shown.size)) ** sign > OTHER_SIZE]
        for sign in (1, -1)
    )
    said = []
    if unlike:
        details = [f"{p.path.name} ({_sides(p.shown.original)}, control {c.width} x {c.height})" for p, c in unlike]
        said.append(
            f"control pictures of another shape than their picture ({len(unlike)}): {some(details)}. What is at one place in the "
            "one is at another in the other; a model that wants both of one size (Mage-Flow) sees it stretched."
        )
    for found, how, mend in (
        (larger, "larger", "Raise the resolution, or make them smaller"),
        (smaller, "smaller", "Lower the resolution, or bring larger ones"),
    ):
        if found:
            details = [f"{p.path.name} ({_sides(p.shown.size)}, control {_sides(size)})" for p, size in found]
            said.append(
                f"control pictures much {how} than their picture is trained at ({len(found)}): {some(details)}. What is drawn "
                f"beside them later is usually as large as they. {mend}."
            )
    return said


def _factor(width: int, height: int, control: Sample) -> float:
    """How many times wider one is for its height than the other."""
    factor = width * control.height / (height * control.width)
    return max(factor, 1 / factor)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def told(own: Dataset, chained: Dataset, done: Sequence[str] = (), amiss: Sequence[str] = ()) -> Statement:
    """All that a dataset's node says: remarks are on its ``own`` pictures, counts and buckets on all that are ``chained``.

    ``done``: what the node did before, and ``amiss`` what went wrong with it. AtelierError where nothing can be trained on.
    """
    counts, buckets = plan_of(chained)
    found = [remark for subset in own.subsets for remark in remarks(subset)]
    notes = tuple(f"also there: {note}" for note in chained.notes)
    passed = list(dict.fromkeys(one for subset in own.subsets for one in subset.passed_over))
    tables = (*buckets, *([Table("not used", ("file", "why"), tuple(passed))] if passed else []))
    return Statement((*done, *chained.counts(), *counts), (*amiss, *chained.warnings, *found), notes, tables)


def plan_of(dataset: Dataset) -> tuple[list[str], tuple[Table, ...]]:
    """(the epoch in a line or two, the table of the buckets); without training pictures, which may come in a later node, a line
    that says so."""
    try:
        plan = Plan(dataset, 0)
    except AtelierError:
        if all(subset.config.role != "training" for subset in dataset.subsets):
            return ["no training pictures yet: connect this node to a Load Dataset whose role is training"], ()
        raise
    several, rows = len(dataset.subsets) > 1, []
    for row in plan.bucket_table():
        config = dataset.subsets[row.subset].config
        rest = row.sightings % config.batch_size
        last = rest if rest and row.batches > 1 else min(config.batch_size, row.sightings)
        numbers = map(str, (row.images, row.sightings, row.batches, last))
        rows.append((
            *((str(row.subset + 1), config.role) if several else ()), bucket_name(row), *numbers,
        ))  # fmt: skip
    columns = (*(("subset", "role") if several else ()), "bucket", "pictures", "sightings", "steps", "in the last")
    held = sum(len(batch.samples) for batch in plan.validation)
    counts = [f"held out for validation: {counted(held, 'picture')}"] if held else []
    return [*counts, f"{counted(plan.steps_per_epoch, 'step')} an epoch"], (Table("buckets", columns, tuple(rows)),)
