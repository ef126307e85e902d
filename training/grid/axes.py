"""Parser of the grid's axes: widget text in, numbers out.

The notation is that of the well-known X/Y/Z plot: ``0.6, 0.8, 1``, ``0-1(+0.25)`` with a step, ``1-0(-0.25)`` downwards,
``0-1[5]`` with a count, or any of them separated by commas; ``config/numbers.py`` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from ..config import numbers
from ..config.numbers import IN_BRACKETS
from ..config.refusal import text_of
from ..errors import AtelierError

MAX_STRENGTH = 100
"""As in the stock loaders, to both sides."""
MAX_SEED = 2**64 - 1
STEPS = ("0.25", "0.2", "0.1", "0.05", "0.01")
"""Between the strengths of a range that names no step."""
MEAN = re.compile(r"mean\b\s*(?:of\b)?(.*)")
EVERY = re.compile(r"every\s*(\d{1,9})(?:\s*(?:st|nd|rd|th)\b)?")


class Numbered(Protocol):
    @property
    def epoch(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def counted(self) -> int: ...


N = TypeVar("N", bound=Numbered)


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths, top to bottom, each once; a range holds both of its ends."""
    values = numbers.numbers(text, "strengths", STEPS)
    if far := [value for value in values if abs(value) > MAX_STRENGTH]:
        raise AtelierError(f"strengths: {far[0]:g} is beyond {MAX_STRENGTH}; 1 is the strength that was trained.")
    return tuple(map(float, values))


def parse_seeds(first: int, more: str) -> tuple[int, ...]:
    """The seed of the widget and, each once, those typed beside it; exact also above 2^53."""
    out = {first: None}
    for part in numbers.parts(more, "more_seeds", whole=True):
        for value in numbers.values_of(part, "more_seeds", ("1",)):
            if value != int(value):
                raise AtelierError(f"more_seeds: {part!r} is no range of whole numbers; write it like 1-4 or 10, 20, 30.")
            if not 0 <= value <= MAX_SEED:
                raise AtelierError(f"more_seeds: {value:f} is no seed; they go from 0 to {MAX_SEED}.")
            out[int(value)] = None
        if len(out) > numbers.MAX_VALUES:
            raise AtelierError(f"more_seeds: more than {numbers.MAX_VALUES} values; use fewer.")
    return tuple(out)


def prompt_lines(text: str) -> list[str]:
    """One prompt a line; blank lines are left out."""
    lines = [line.strip() for line in text_of("prompts", text).splitlines() if line.strip()]
    if not lines:
        raise AtelierError("prompts: write at least one prompt, one a line.")
    return lines


@dataclass(frozen=True)
class EpochMean:
    """A column that is the mean of several saved files of a run."""

    text: str
    """The epochs as they were typed, ``3-5``."""
    numbers: tuple[int, ...]
    last: bool = False
    """The last file as well."""

    @property
    def label(self) -> str:
        return f"mean {self.text}"

    def of(self, files: Sequence[N]) -> list[N]:
        """The file of each number that was saved, each once, first to last."""
        found = [file for number in self.numbers if (file := _saved_as(number, files)) is not None]
        found += files[-1:] if self.last else []
        return [file for file in files if any(file is one for one in found)]

    def missing(self, files: Sequence[Numbered]) -> list[int]:
        """Epochs that are not among ``files``."""
        return [number for number in self.numbers if _saved_as(number, files) is None]


@dataclass(frozen=True)
class EpochChoice:
    """Which of a run's saved files are shown: every N-th of them, or those of certain epochs; and means of some."""

    text: str
    every: int = 1
    """Only where no numbers are given; 1 is all of them."""
    numbers: frozenset[int] = frozenset()
    last: bool = False
    """With numbers: the last file as well."""
    single: tuple[int, ...] = ()
    """Those of the numbers that were typed one by one, and not as a range."""
    means: tuple[EpochMean, ...] = ()
    means_alone: bool = False
    """Nothing but means was asked for."""

    def of(self, files: Sequence[N]) -> list[N]:
        """The chosen ones of ``files`` (first to last), empty if none was saved; the last is always among every N-th."""
        if self.means_alone:
            return []
        if not self.numbers and not self.last:
            return [f for i, f in enumerate(files, 1) if i % self.every == 0 or i == len(files)]
        others = self.numbers - {_number(file) for file in files}
        return [
            file for i, file in enumerate(files, 1)
            if _number(file) in self.numbers or file.counted in others or (self.last and i == len(files))
        ]  # fmt: skip

    def missing(self, files: Sequence[Numbered]) -> list[int]:
        """Epochs that were asked for one by one and are not among ``files``."""
        there = {number for file in files for number in (_number(file), file.counted)}
        return [number for number in self.single if number not in there]


def _number(file: Numbered) -> int | None:
    """What a file is chosen by: its epoch, or its step where no epoch is known; else what it shows, such as ``step 500``."""
    return file.epoch or file.step or None


def _saved_as(number: int, files: Sequence[N]) -> N | None:
    """The file of that epoch (of several the one after all of it), or else the one that shows the number; None without any."""
    of_epoch = [file for file in files if _number(file) == number]
    whole = [file for file in of_epoch if file.counted == number]
    shown = [file for file in files if file.counted == number]
    found = whole or of_epoch or shown
    return found[-1] if found else None


EPOCHS_LIKE = "all, every 2, numbers such as 1, 3, 6-10(+2), last, or mean 3-5"


def parse_epochs(text: str) -> EpochChoice:
    """``all`` (or nothing), ``every 2``, or numbers and ranges of epochs: ``1, 3, 6-10(+2), last``; beside these or alone,
    means of several: ``mean 3-5``, ``mean 2 4 last``."""
    plain = numbers.plain(text).strip().lower()
    if "mean" not in plain:
        return _parse_files(plain)
    parts = [part.strip() for part in re.split(r"[,;\n\r]", IN_BRACKETS.sub(lambda found: found[0].replace(",", "."), plain))]
    means = dict.fromkeys(_parse_mean(found[1]) for part in parts if (found := MEAN.fullmatch(part)))
    others = [part for part in parts if part and not MEAN.fullmatch(part)]
    if not others:
        return EpochChoice(plain, means=tuple(means), means_alone=True)
    return replace(_parse_files(", ".join(others)), text=plain, means=tuple(means))


def _parse_mean(text: str) -> EpochMean:
    words = [word for part in re.sub(r"\s*-\s*", "-", text).split() for word in numbers.parts(part, "which_epochs", whole=True)]
    found = [value for word in words if word != "last" for value in numbers.values_of(word, "which_epochs", ("1",))]
    if len(found) > numbers.MAX_VALUES:
        raise AtelierError(f"which_epochs: more than {numbers.MAX_VALUES} values; use fewer.")
    if wrong := [value for value in found if value != int(value) or value < 0]:
        raise AtelierError(f"which_epochs: {wrong[0]:f} is no epoch; they are whole numbers from 1 on.")
    whole = tuple(sorted(set(map(int, found))))
    if len(whole) + ("last" in words) < 2:
        raise AtelierError("which_epochs: a mean is one of several epochs; write mean 3-5 or mean 2 4 6.")
    return EpochMean(" ".join(words), whole, "last" in words)


def _parse_files(plain: str) -> EpochChoice:
    """All but means."""
    if plain in ("", "all"):
        return EpochChoice(plain or "all")
    if match := EVERY.fullmatch(plain):
        if int(match[1]) == 0:
            raise AtelierError("which_epochs: 'every 0' shows nothing; write every 1 or more.")
        return EpochChoice(plain, every=int(match[1]))
    words = numbers.parts(plain, "which_epochs", whole=True)
    if unread := [word for word in words if word != "last" and not re.search(r"\d", word)]:
        raise AtelierError(f"which_epochs: {unread[0]!r} names no epoch; write {EPOCHS_LIKE}.")
    found = {word: numbers.values_of(word, "which_epochs", ("1",)) for word in words if word != "last"}
    values = [value for some in found.values() for value in some]
    if len(values) > numbers.MAX_VALUES:
        raise AtelierError(f"which_epochs: more than {numbers.MAX_VALUES} values; use fewer.")
    if not words:
        raise AtelierError(f"which_epochs: write {EPOCHS_LIKE}.")
    if wrong := [value for value in values if value != int(value) or value < 0]:
        raise AtelierError(f"which_epochs: {wrong[0]:f} is no epoch; they are whole numbers from 1 on.")
    return EpochChoice(
        plain,
        numbers=frozenset(map(int, values)),
        last="last" in words,
        single=tuple(int(some[0]) for word, some in found.items() if word.isdigit()),
    )
