"""Parser of the grid's axes: widget text in, numbers out.

The notation is that of the well-known X/Y/Z plot: ``0.6, 0.8, 1``, ``0-1(+0.25)`` with a step, ``1-0(-0.25)`` downwards,
``0-1[5]`` with a count, or any of them separated by commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..config.refusal import text_of
from ..errors import AtelierError

MAX_VALUES = 1000
"""Values on one axis."""
MAX_STRENGTH = 100.0
"""As in the stock loaders, to both sides."""
MAX_SEED = 2**64 - 1
NUMBER = r"[+-]?\d{1,20}(?:\.\d{1,12})?"
STEPPED = re.compile(rf"({NUMBER})\s*-\s*({NUMBER})\s*(?:\(\s*([+-])\s*(\d{{1,12}}(?:\.\d{{1,12}})?)\s*\))?")
COUNTED = re.compile(rf"({NUMBER})\s*-\s*({NUMBER})\s*\[\s*(\d{{1,9}})\s*\]")
EVERY = re.compile(r"every\s+(\d{1,9})")


class Numbered(Protocol):
    @property
    def epoch(self) -> int: ...


N = TypeVar("N", bound=Numbered)


def parse_numbers(text: str, widget: str, default_step: float) -> list[float]:
    """The values once each, in the order typed, rounded to 6 places; AtelierError naming ``widget`` if one cannot be read."""
    out: dict[float, None] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        for value in _values(part, widget, default_step):
            out[round(value, 6) + 0.0] = None  # -0 is 0
        if len(out) > MAX_VALUES:
            raise AtelierError(f"{widget}: more than {MAX_VALUES} values; use fewer.")
    if not out:
        raise AtelierError(f"{widget}: write at least one number, for example 0.6, 0.8, 1.0.")
    return list(out)


def _values(part: str, widget: str, default_step: float) -> list[float]:
    if match := COUNTED.fullmatch(part):
        first, last, count = float(match[1]), float(match[2]), int(match[3])
        if not 1 <= count <= MAX_VALUES:
            raise AtelierError(f"{widget}: {part!r} asks for {count} values; 1 to {MAX_VALUES} are possible.")
        return [first + (last - first) * i / max(1, count - 1) for i in range(count)]
    if match := STEPPED.fullmatch(part):
        first, last = float(match[1]), float(match[2])
        step = float(match[4] or default_step) * (-1 if match[3] == "-" else 1)
        if step == 0 or (last - first) / step < 0:
            raise AtelierError(f"{widget}: {part!r} leads nowhere; write it like 0-1(+0.25), smaller number first.")
        if (last - first) / step > MAX_VALUES:
            raise AtelierError(f"{widget}: {part!r} has more than {MAX_VALUES} values; use a larger step.")
        return [first + step * i for i in range(int((last - first) / step + 1e-9) + 1)]
    if re.fullmatch(NUMBER, part):
        return [float(part)]
    raise AtelierError(f"{widget}: {part!r} is neither a number nor a range such as 0-1(+0.25) or 0-1[5].")


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths, top to bottom."""
    values = parse_numbers(text, "strengths", 0.25)
    if far := [value for value in values if abs(value) > MAX_STRENGTH]:
        raise AtelierError(f"strengths: {far[0]:g} is beyond {MAX_STRENGTH:g}; 1 is the strength that was trained.")
    return tuple(values)


def parse_seeds(first: int, more: str) -> tuple[int, ...]:
    """The seed of the widget and, each once, those typed beside it; exact also above 2^53."""
    out = {first: None}
    for part in filter(None, (p.strip() for p in more.split(","))):
        if re.fullmatch(r"\d{1,20}", part):
            seeds = [int(part)]
        else:
            values = _values(part, "more_seeds", 1.0)
            seeds = [int(value) for value in values]
            if any(value != int(value) for value in values) or max(map(abs, values)) > 2**53:
                raise AtelierError(f"more_seeds: {part!r} is no range of whole numbers; write it like 1-4 or 10, 20, 30.")
        for seed in seeds:
            if not 0 <= seed <= MAX_SEED:
                raise AtelierError(f"more_seeds: {seed} is no seed; they go from 0 to {MAX_SEED}.")
            out[seed] = None
    return tuple(out)


def prompt_lines(text: str) -> list[str]:
    """One prompt a line; blank lines are left out."""
    lines = [line.strip() for line in text_of("prompts", text).splitlines() if line.strip()]
    if not lines:
        raise AtelierError("prompts: write at least one prompt, one a line.")
    return lines


@dataclass(frozen=True)
class EpochChoice:
    """Which of a run's saved files are shown: every N-th of them, or those of certain epochs."""

    text: str
    every: int = 1
    """Only where no numbers are given; 1 is all of them."""
    numbers: frozenset[int] = frozenset()
    last: bool = False
    """With numbers: the last file as well."""

    def of(self, files: Sequence[N]) -> list[N]:
        """The chosen ones of ``files`` (first to last), empty if none was saved; the last is always among every N-th."""
        if not self.numbers and not self.last:
            return [f for i, f in enumerate(files, 1) if i % self.every == 0 or i == len(files)]
        return [f for i, f in enumerate(files, 1) if f.epoch in self.numbers or (self.last and i == len(files))]


def parse_epochs(text: str) -> EpochChoice:
    """``all`` (or nothing), ``every 2``, or numbers and ranges of epochs: ``1, 3, 6-10(+2), last``."""
    plain = text.strip().lower()
    if plain in ("", "all"):
        return EpochChoice(plain or "all")
    if match := EVERY.fullmatch(plain):
        if int(match[1]) == 0:
            raise AtelierError("which_epochs: 'every 0' shows nothing; write every 1 or more.")
        return EpochChoice(plain, every=int(match[1]))
    parts = [part.strip() for part in plain.split(",") if part.strip()]
    numbers = [part for part in parts if part != "last"]
    values = parse_numbers(",".join(numbers), "which_epochs", 1.0) if numbers else []
    if wrong := [value for value in values if value != int(value) or value < 0]:
        raise AtelierError(f"which_epochs: {wrong[0]:g} is no epoch; they are whole numbers from 1 on.")
    return EpochChoice(plain, numbers=frozenset(int(value) for value in values), last=len(numbers) < len(parts))
