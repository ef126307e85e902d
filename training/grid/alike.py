"""Cells that show the very same picture, so that nobody compares what cannot differ."""

from __future__ import annotations

from collections.abc import Sequence

from .plan import Axes

Looks = dict[tuple[int, int], bytes]
"""By (column, row): a digest of the picture; column 0 is the control."""


def repeats(axes: Axes, pages: Sequence[Looks]) -> list[str]:
    """Sentences about columns and strengths whose pictures are equal on every page; a strength of 0 is left out."""
    rows = [row for row, strength in enumerate(axes.strengths) if strength]
    columns = {
        number: [tuple(page.get((number, row)) for page in pages) for row in rows] for number in range(1, 1 + len(axes.columns))
    }
    control = tuple(page.get((0, 0)) for page in pages)
    out, seen = list[str](), dict[tuple[tuple[bytes | None, ...], ...], str]()
    for number, looks in columns.items():
        label = axes.columns[number - 1].label
        if not looks or any(None in look for look in looks):
            continue
        idle = [f"{axes.strengths[row]:g}" for row, look in zip(rows, looks, strict=True) if look == control]
        if idle:
            out.append(f"{label} changes nothing here at strength {_list(idle)}: the picture is the one without a LoRA.")
        elif tuple(looks) in seen:
            out.append(f"{label} gives the same pictures as {seen[tuple(looks)]}.")
        for look in dict.fromkeys(looks):
            same = [f"{axes.strengths[row]:g}" for row, other in zip(rows, looks, strict=True) if other == look]
            if look != control and len(same) > 1:
                out.append(f"{label} gives the same picture at the strengths {_list(same)}.")
        seen.setdefault(tuple(looks), label)
    return out


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
