"""Parser of optimizer arguments (``weight_decay=0.01 decouple=True betas=0.9,0.999``): read, checked, written.

Nothing is evaluated: a value is a number, true, false, none, or numbers with commas between them.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Union

from ..errors import AtelierError
from . import numbers

Value = Union[bool, int, float, tuple[float, ...], None]  # noqa: UP007 - evaluated at run time, also by Python 3.10

WIDGET = "optimizer arguments"
WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}
PAIR = re.compile(r"(?:^|[\s,;])([A-Za-z_]\w*)\s*=\s*", re.ASCII)
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?|[+-]?inf")

# Set by this pack, or of no use in a run: turning gradients round, captured graphs, other processes, printing.
HIDDEN = {"params", "capturable", "differentiable", "fsdp_in_use", "log_every", "maximize"}
# A library's default of None does not tell what else it takes; one of 0 may mean 0.0; these are the cases.
SWITCHES = {"foreach", "fused"}
COUNTS = {"min_8bit_size", "percentile_clipping", "slice_p"}
NONES = {("ProdigyPlusScheduleFree", "eps")}
"""(optimizer, argument) that may be none, though that is not its default."""


def parse(text: str) -> dict[str, Value]:
    """The pairs of ``text``, in order; they stand on one line or on several, quotes and commas around them do not matter.

    Raises AtelierError for what is no pair, no value, or named twice.
    """
    plain = numbers.plain(text).replace('"', " ").replace("'", " ").strip()
    found = list(PAIR.finditer(plain))
    before = plain[: found[0].start()] if found else plain
    if before.strip(" \t\r\n,;"):
        raise AtelierError(f"{WIDGET}: {before.strip()!r} is not of the form key=value, such as weight_decay=0.01.")
    ends = [*(match.start() for match in found[1:]), len(plain)]
    out: dict[str, Value] = {}
    for match, end in zip(found, ends, strict=False):
        key, value = match[1], plain[match.end() : end]
        if key in out:
            raise AtelierError(f"{WIDGET}: {key} is given twice; keep one of them.")
        out[key] = _value(key, value.strip(" \t\r\n,;"))
    return out


def _value(key: str, text: str) -> Value:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    bare = text[1:-1] if (text[:1], text[-1:]) in (("(", ")"), ("[", "]")) else text
    parts = [part.strip() for part in bare.strip().rstrip(",").split(",")]
    if not all(INTEGER.fullmatch(part) or NUMBER.fullmatch(part) for part in parts):
        raise AtelierError(f"{WIDGET}: {key}={text}: use a number, true, false, none, or numbers with commas such as 0.9,0.999.")
    values = [int(part) if INTEGER.fullmatch(part) else float(part) for part in parts]
    return values[0] if len(values) == 1 else tuple(values)


def write(values: Mapping[str, Value]) -> str:
    """The text that ``parse`` reads as ``values``."""
    return " ".join(f"{key}={_text(value)}" for key, value in values.items())


def _text(value: Value) -> str:
    return ",".join(map(repr, value)) if isinstance(value, tuple) else repr(value)


def check(
    name: str, make: Callable[..., object], given: Mapping[str, Value], own: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """``given`` as ``make``, the constructor of the optimizer ``name``, takes it; ``own`` are keys that widgets stand for.

    Raises AtelierError: for an unknown key with those that exist, for a wrong kind of value with what is expected.
    """
    known = {
        key: parameter
        for key, parameter in inspect.signature(make).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and key not in HIDDEN | own
    }
    out: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise AtelierError(f"{WIDGET}: {name} has no {key!r}; it takes {', '.join(known)}.")
        out[key] = _fitting(name, key, value, known[key].default)
    return out


def _fitting(name: str, key: str, value: Value, default: Any) -> Value:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool) or key in SWITCHES:
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, (tuple, list)):
        fits, wanted = isinstance(value, tuple) and len(value) == len(default), f"{len(default)} numbers with commas"
    elif key in COUNTS:
        fits, wanted = isinstance(value, int) and number and value > 0, "a whole number above 0"
    else:
        fits, wanted = number, "a number"
    if value is None and (default is None or key in SWITCHES or (name, key) in NONES):
        return None
    if isinstance(value, float) and math.isinf(value) and default != value:
        raise AtelierError(f"{WIDGET}: {key} of {name} has to be a number, not {_text(value)}.")
    commas = isinstance(value, tuple) and all(isinstance(part, int) for part in value) and any(value)
    if not fits or (commas and not all(isinstance(part, int) for part in default)):
        point = "; decimals are written with a point" if commas else ""
        example = "" if default in (None, inspect.Parameter.empty) else f" such as {_text(default)}"
        raise AtelierError(f"{WIDGET}: {key} of {name} has to be {wanted}{example}, not {_text(value)}{point}.")
    return float(value) if isinstance(default, float) and isinstance(value, int) else value
