"""Sweep: one recipe trained several times, each time with other values of some of its widgets.

A line is a widget and its values, ``rank: 8, 16, 32``; several lines are combined, the last varying fastest. Numbers may be
ranges as in the grid's axes, ``8-32(+8)``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from ..errors import AtelierError
from . import numbers
from .refusal import refuse, text_of

MOST = 50
"""Trainings of one sweep."""
NAMED = 6
"""Of which so many are named before they are queued."""
LONGEST = 2000
"""Characters of a line."""
SCIENTIFIC = re.compile(r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?", re.ASCII)
DOUBTFUL = re.compile(r"(?:^|[,;\s])[+-]?\d+,\d+[eE]", re.ASCII)
"""``1,5e-4``: one number with a decimal comma, or two."""
UNSAFE = re.compile(r"[^\w .+-]+", re.UNICODE)
YES, NO = frozenset({"on", "yes", "true", "1"}), frozenset({"off", "no", "false", "0"})

Kind = type[int] | type[float] | type[bool] | tuple[str, ...]
"""What a widget takes: a number, a switch, or one of some texts."""


def combinations(text: str, kinds: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """The values of each training, by widget, in order; one empty dictionary where nothing varies.

    ``kinds``: the widgets that may vary. AtelierError for what cannot be read, with the line that it stands in.
    """
    axes: dict[str, list[Any]] = {}
    for line in filter(None, map(str.strip, numbers.plain(text_of("sweep", text)).splitlines())):
        refuse(len(line) > LONGEST, f"sweep: a line has {len(line)} characters; at most {LONGEST}.")
        named, *values = map(str.strip, re.split("[:=]", line, maxsplit=1))
        refuse(not values or not named, f"sweep: {line!r} names no widget; write it like 'rank: 8, 16, 32'.")
        widget = named.lower().replace(" ", "_")
        refuse(widget not in kinds, f"sweep: {named!r} cannot vary. One of these can: {', '.join(sorted(kinds))}.")
        refuse(widget in axes, f"sweep: {widget} stands in two lines; write all of its values into one.")
        axes[widget] = _values(widget, values[0], kinds[widget])
        count = math.prod(map(len, axes.values()))
        refuse(count > MOST, f"sweep: these would be {count} trainings or more; at most {MOST}. Use fewer values.")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _values(widget: str, text: str, kind: Kind) -> list[Any]:
    """What a line names, each value once."""
    named = f"sweep: {widget}"
    if kind is int or kind is float:
        values = _numbers(named, text, whole=kind is int)
    else:
        values = [_one(named, part.strip(), kind) for part in re.split(r"[,;]", text) if part.strip()]
    refuse(not values, f"{named} has no values; write them behind it, separated by commas.")
    return list(dict.fromkeys(values))


def _numbers(named: str, text: str, whole: bool) -> list[Any]:
    if re.search(r"\d[eE]", text):  # 1e-4, which no range is written with
        if found := DOUBTFUL.search(text):
            raise AtelierError(
                f"{named}: {found[0].strip(' ,;')[:-1]!r} can be one number or two; write a decimal point, or a blank behind the "
                "comma."
            )
        parts = [part for part in re.split(r"[,;\s]", text) if part]
        wrong = [part for part in parts if not SCIENTIFIC.fullmatch(part)]
        if wrong:
            raise AtelierError(f"{named}: {wrong[0]!r} is no number; write them like 1e-4, 5e-4.")
        values = [Decimal(part) for part in parts]
    else:
        values = numbers.numbers(text, named, ("1",), whole=whole)
    for value in values:
        refuse(abs(value) >= 2**64, f"{named}: {value:g} is too large for a setting.")
        refuse(whole and value != int(value), f"{named}: {value:g} is no whole number.")
    return [int(value) if whole else float(value) for value in values]


def _one(named: str, part: str, kind: Kind) -> Any:
    if kind is bool:
        refuse(part.lower() not in YES | NO, f"{named}: {part!r} is neither on nor off.")
        return part.lower() in YES
    assert isinstance(kind, tuple)
    by_name = {option.lower(): option for option in kind}
    refuse(part.lower() not in by_name, f"{named}: {part!r} is not one of {', '.join(kind)}.")
    return by_name[part.lower()]


def varied(values: Mapping[str, Any]) -> str:
    """What tells one training of a sweep from the others, as a recipe keeps it: ``rank=8; learning_rate=0.0001``."""
    return "; ".join(f"{widget}={_said(value)}" for widget, value in values.items())


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def pairs(text: str) -> list[tuple[str, str]]:
    """(widget, value) of what ``varied`` wrote."""
    found = [part.partition("=") for part in text.split("; ") if part]
    return [(widget, value) for widget, _, value in found]


def label(text: str) -> str:
    """For people: ``rank 8, learning_rate 0.0001``."""
    return ", ".join(f"{widget} {value}" for widget, value in pairs(text))


def remarks(texts: Sequence[str]) -> list[str]:
    """What is said of several trainings before they are queued."""
    if len(texts) < 2:
        return []
    named = [label(text) for text in texts[:NAMED]] + ([f"and {len(texts) - NAMED} more"] if len(texts) > NAMED else [])
    return [f"sweep: {len(texts)} trainings one after the other ({'; '.join(named)}). What stands here is of the first."]


def name_of(name: str, text: str) -> str:
    """The name of a run: that of its recipe, and behind it what is varied, as far as file names may hold it."""
    safe = " ".join(UNSAFE.sub("-", f"{widget} {value}").strip() for widget, value in pairs(text))
    return f"{name} {safe}".rstrip(" .") if safe else name


def axis(texts: Sequence[str]) -> str:
    """The widgets that vary among several trainings, for the head of a grid: ``rank and learning_rate``."""
    return " and ".join(dict.fromkeys(widget for text in texts for widget, _ in pairs(text)))
