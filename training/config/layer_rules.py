"""Parser of layer rules: the widgets that choose layers by name (include, exclude, rules per block).

A pattern is a glob over the whole dotted name of a layer: ``*`` any characters, ``?`` one, and a component made of numbers, such
as ``0-9`` or ``0,3,7-9``, any of these numbers. ``re:`` in front makes it a regular expression that is searched in the name. No
pattern can take longer than its length times the name's. One pattern, or one rule, a line; ``#`` starts a comment line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ..errors import AtelierError
from . import numbers
from .expressions import Expression
from .wildcards import ANY, Wildcards, fits

NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)
NUMBER = re.compile(r"[+-]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,4})?|nan|[+-]?inf", re.ASCII)
LARGEST = 9999


@dataclass(frozen=True)
class Pattern:
    """One line of a widget."""

    text: str
    where: str
    """Widget and line, for messages: ``rules, line 2``."""
    matches: Callable[[str], bool]
    """Whether it fits the name of a layer."""


@dataclass(frozen=True)
class Rule:
    """Settings of the layers that a pattern matches; None leaves a setting as it is."""

    pattern: Pattern
    rank: int | None = None
    alpha: float | None = None
    """0 means the rank; None keeps the ratio of alpha to rank."""
    rate: float | None = None
    """Factor on the learning rate."""


def parse_patterns(widget: str, text: str) -> tuple[Pattern, ...]:
    """The patterns of ``include`` or ``exclude``. Raises AtelierError that names widget and line."""
    return tuple(_pattern(f"{widget}, line {number}", line) for number, line in _lines(text))


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Rules such as ``double_blocks.0-9.* rank=8 alpha=4 rate=0.5``. Raises AtelierError that names the line."""
    rules = []
    for number, line in _lines(text):
        where = f"rules, line {number}"
        pattern, *settings = line.split()
        if not settings:
            raise AtelierError(f"{where}: {line!r} sets nothing; write for example '{pattern} rank=8'.")
        values: dict[str, str] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if key not in ("rank", "alpha", "rate") or not equals:
                raise AtelierError(f"{where}: {setting!r} is none of rank=, alpha= and rate= (without blanks around '=').")
            if key in values:
                raise AtelierError(f"{where}: {key} is set twice.")
            values[key] = value
        rank = _number(where, "rank", values.get("rank"), 1, 1024)
        if rank is not None and rank != int(rank):
            raise AtelierError(f"{where}: rank={values['rank']} is not a whole number.")
        alpha = _number(where, "alpha", values.get("alpha"), 0, 1024)
        rate = _number(where, "rate", values.get("rate"), 1e-6, 1e6)
        rules.append(Rule(_pattern(where, pattern), None if rank is None else int(rank), alpha, rate))
    return tuple(rules)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(1-based number, content) of the lines that say something."""
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content.startswith("re:"):
            content = numbers.plain(content).strip()
        if content and not content.startswith("#"):
            yield number, content


def _number(where: str, key: str, text: str | None, low: float, high: float) -> float | None:
    if text is None:
        return None
    plain = text.replace(",", ".")  # one number is wanted, so a comma can only be a decimal one
    if not NUMBER.fullmatch(plain):
        raise AtelierError(f"{where}: {key}={text} is not a number.")
    value = float(plain)
    if not low <= value <= high:  # also true for nan
        advice = "; to leave layers out, use exclude" if key == "rate" and value <= 0 else ""
        raise AtelierError(f"{where}: {key}={text} is outside {low:g} to {high:g}{advice}.")
    return value


def _pattern(where: str, text: str) -> Pattern:
    if not text.startswith("re:"):
        return Pattern(text, where, _glob(where, text))
    try:
        return Pattern(text, where, Expression(text[3:]).found_in)
    except ValueError as error:
        raise AtelierError(f"{where}: {text!r} is no regular expression: {error}.") from None


def _glob(where: str, text: str) -> Callable[[str], bool]:
    """Whether a name is what the glob says."""
    tokens: list[str | frozenset[int]] = []
    for component in text.split("."):
        if NUMBERS.fullmatch(component) and not component.isdigit():
            tokens.append(frozenset(_numbers(where, component)))
        else:
            tokens += [ANY if c == "?" else c for c in component]
        tokens.append(".")
    plain = "".join(token if isinstance(token, str) else ANY for token in tokens[:-1])
    return Wildcards(plain).matches if ANY not in plain else partial(fits, tokens[:-1])


def _numbers(where: str, component: str) -> set[int]:
    out: set[int] = set()
    for piece in component.split(","):
        first, _, last = piece.partition("-")
        low, high = (int(number[:9]) for number in (first, last or first))  # more digits are too many anyhow
        if low > high or high > LARGEST:
            raise AtelierError(f"{where}: {piece!r} is no range of numbers from low to high, at most {LARGEST}.")
        out.update(range(low, high + 1))
    return out
