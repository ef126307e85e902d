"""Refusal of a setting: a sentence that names the widget and says what to do."""

from __future__ import annotations

from typing import get_args

from ..errors import AtelierError


def refuse(condition: bool, sentence: str) -> None:
    if condition:
        raise AtelierError(sentence)


def choice(widget: str, value: str, allowed: object) -> None:
    options = get_args(allowed)
    refuse(value not in options, f"{widget}: {value!r} is not one of {', '.join(options)}.")
