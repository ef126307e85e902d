"""Refusal of a setting: a sentence that names the widget and says what to do."""

from __future__ import annotations

from dataclasses import fields
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


def only_text(settings: Any) -> None:
    """Refuses what is no text in the fields of a dataclass that are declared as text."""
    for one in fields(settings):
        if one.type in ("str", str):
            text_of(one.name.replace("_", " "), getattr(settings, one.name))


def choice(widget: str, value: str, allowed: object) -> None:
    options = get_args(allowed)
    refuse(value not in options, f"{widget}: {value!r} is not one of {', '.join(options)}.")
