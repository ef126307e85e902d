"""Refusal of a setting: a sentence that names the widget and says what to do."""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Real
from typing import Any, get_args

from ..errors import AtelierError


def refuse(condition: bool, sentence: str) -> None:
    if condition:
        raise AtelierError(sentence)


def text_of(widget: str, value: object) -> str:
    """``value``, which may have come over a wire, if it is text."""
    if not isinstance(value, str):
        raise AtelierError(
            f"{widget}: it was given {type(value).__name__} and no text. Connect a node that gives text, or write into the "
            "widget."
        )
    return value


def check_kinds(settings: Any) -> None:
    """Refuses what is no text in the fields of a dataclass that are declared as text, and what is no number in those of numbers.

    NaN and infinity are no numbers here: no setting means them, and they would get into files.
    """
    for one in fields(settings):
        widget, value = one.name.replace("_", " "), getattr(settings, one.name)
        if one.type in ("str", str):
            text_of(widget, value)
        elif one.type in ("int", "float", int, float):
            sound = isinstance(value, Real) and math.isfinite(value)
            refuse(not sound, f"{widget}: {value!r} is no number that can be used. Connect a node that gives one, or write it.")


def choice(widget: str, value: str, allowed: object) -> None:
    options = get_args(allowed)
    refuse(value not in options, f"{widget}: {value!r} is not one of {', '.join(options)}.")
