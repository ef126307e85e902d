"""Numbers as people type them: one value, or a list with ranges; the same for every widget that takes them as text.

All arithmetic is decimal, so that ``0.6-1.0`` ends at 1. Full-width digits and signs, and the dashes of other keyboards, mean
what they look like. A comma may be a decimal comma: where the text leaves no doubt it is understood, else it is refused with
both readings, since a guess would draw a strength of 6 for ``0,6``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, localcontext

from ..errors import AtelierError

MAX_VALUES = 1000
"""Values of one list."""
PLACES = Decimal("0.000001")
"""Values are told apart to this much."""
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2053\u301c\uff5e\ufe63\uff0d~"
"""What other keyboards give for a hyphen or a minus sign."""
LIKE = str.maketrans({**dict.fromkeys(DASHES, "-"), "\u2026": "..", "\u3001": ",", "\u3000": " "})
NUMBER = r"[+-]?(?:\d{1,20}(?:\.\d{0,12})?|\.\d{1,12})"
STEP = r"\d{0,12}(?:\.\d{0,12})?"
STEPPED = re.compile(rf"({NUMBER})\s*(?:-|\.\.)\s*({NUMBER})\s*(?:\(\s*([+-])\s*({STEP})\s*\))?", re.ASCII)
SLICED = re.compile(rf"({NUMBER})\s*:\s*({NUMBER})\s*(?::\s*({NUMBER})\s*)?", re.ASCII)
COUNTED = re.compile(rf"({NUMBER})\s*(?:-|\.\.|:)\s*({NUMBER})\s*\[\s*(\d{{1,9}})\s*\]", re.ASCII)
LIST_OF_BLANKS = re.compile(rf"{NUMBER}(?:\s+{NUMBER})+", re.ASCII)
TIGHT = re.compile(r"(?<=\d),(?=\d)", re.ASCII)
"""A comma that may belong to the number around it."""
IN_BRACKETS = re.compile(r"\([^()]*\)")


def plain(text: str) -> str:
    """``text`` with everyday digits, dashes, dots, commas and brackets in place of their look-alikes."""
    out = []
    for character in text.translate(LIKE):
        if "\uff01" <= character <= "\uff5e":  # the full-width forms of ASCII
            out.append(chr(ord(character) - 0xFEE0))
        else:
            out.append(" " if character == "\u00a0" else character)
    return re.sub(r"\.{3,}", "..", "".join(out))


def numbers(text: str, widget: str, steps: Sequence[str], *, whole: bool = False) -> list[Decimal]:
    """The values of a list once each, in the order typed; AtelierError naming ``widget`` for what cannot be read.

    ``steps`` are those of a range that names none: the first by which it can be divided, and its end stands last in any case.
    ``whole``: only whole numbers are meant, so that every comma ends one.
    """
    out: dict[Decimal, None] = {}
    for part in parts(text, widget, whole=whole):
        for value in values_of(part, widget, steps):
            out[value + 0] = None  # -0 is 0
        if len(out) > MAX_VALUES:
            raise AtelierError(f"{widget}: more than {MAX_VALUES} values; use fewer.")
    if not out:
        raise AtelierError(f"{widget}: write at least one number, for example 0.6, 0.8, 1.0.")
    return list(out)


def parts(text: str, widget: str, *, whole: bool = False) -> list[str]:
    """The numbers and ranges of a list, which commas, semicolons, line ends or (between plain numbers) blanks part."""
    clear = IN_BRACKETS.sub(lambda found: found[0].replace(",", "."), plain(text))
    if not whole and TIGHT.search(clear):
        clear = _without_decimal_commas(clear, text, widget)
    out: list[str] = []
    for part in (part.strip() for part in re.split(r"[,;\n\r]", clear)):
        if re.search(r"\d\s+-\.?\d", part):
            raise AtelierError(f"{widget}: {part!r} can be a range or two numbers; write the range without blanks, or a comma.")
        out += part.split() if LIST_OF_BLANKS.fullmatch(part) else [part]
    return [part for part in out if part]


def _without_decimal_commas(clear: str, text: str, widget: str) -> str:
    """The list with points for its decimal commas and semicolons for what parts it."""
    if re.search(r"(?<!\.)\.(?!\.)", clear):
        return clear  # a decimal point is in use, so that commas part
    loose = re.split(r"[;\n\r]|,(?!\d)|(?<!\d),|(?<=\d)\s+(?=[\d+-])", clear)
    items = [item.strip() for item in loose if item.strip()]
    certain = len(items) > 1 and (";" in clear or "\n" in clear or all(len(TIGHT.findall(item)) == 1 for item in items))
    if certain and all(re.fullmatch(r"[+-]?\d+(?:,\d+)?", item, re.ASCII) for item in items):
        return ";".join(item.replace(",", ".") for item in items)
    found = re.search(r"[+-]?\d+,\d+", clear)
    pair = found[0] if found else text.strip()
    raise AtelierError(
        f"{widget}: {pair!r} can be {pair.replace(',', '.')} or {pair.replace(',', ' and ')}; write decimals with a point, and "
        f"a blank behind a comma that parts two numbers: {pair.replace(',', '.')} or {pair.replace(',', ', ')}."
    )


def values_of(part: str, widget: str, steps: Sequence[str]) -> list[Decimal]:
    """The values of a number or a range: ``0-1``, ``0..1``, ``0-1(+0.25)``, ``0:1:0.25``, ``0-1[5]``; its end is part of it."""
    if match := COUNTED.fullmatch(part):
        first, last, count = _number(match[1], part, widget), _number(match[2], part, widget), int(match[3])
        if not 1 <= count <= MAX_VALUES:
            raise AtelierError(f"{widget}: {part!r} asks for {count} values; 1 to {MAX_VALUES} are possible.")
        return [_rounded(first + (last - first) * i / max(1, count - 1)) for i in range(count)]
    if match := STEPPED.fullmatch(part):
        first, last = _number(match[1], part, widget), _number(match[2], part, widget)
        if match[3] is None:
            return list(_unstepped(first, last, part, widget, steps))
        return _range(first, last, _number(match[4], part, widget) * (-1 if match[3] == "-" else 1), part, widget)
    if match := SLICED.fullmatch(part):
        first, last = _number(match[1], part, widget), _number(match[2], part, widget)
        if match[3] is None:
            return list(_unstepped(first, last, part, widget, steps))
        return _range(first, last, _number(match[3], part, widget), part, widget)
    return [_number(part, part, widget)]


def _unstepped(first: Decimal, last: Decimal, part: str, widget: str, steps: Sequence[str]) -> Iterator[Decimal]:
    sign = -1 if last < first else 1
    step = next((s for s in map(Decimal, steps) if (last - first) % s == 0), Decimal(steps[0]))
    yield from _range(first, last, step * sign, part, widget)
    yield last


def _range(first: Decimal, last: Decimal, step: Decimal, part: str, widget: str) -> list[Decimal]:
    if step == 0 or (last - first) / step < 0:
        raise AtelierError(f"{widget}: {part!r} leads nowhere; write it like 0-1(+0.25), or 1-0(-0.25) downwards.")
    if (last - first) / step > MAX_VALUES:
        raise AtelierError(f"{widget}: {part!r} has more than {MAX_VALUES} values; use a larger step.")
    return [first + step * i for i in range(int((last - first) // step) + 1)]


def _number(text: str, part: str, widget: str) -> Decimal:
    if re.fullmatch(NUMBER, text, re.ASCII):
        value = Decimal(text)
        if value != _rounded(value):
            raise AtelierError(f"{widget}: {text} has more than six decimal places; use fewer.")
        return value
    if re.fullmatch(rf"{NUMBER}\s*%", text, re.ASCII):
        share = f"{Decimal(text.rstrip('% ')) / 100:f}"
        raise AtelierError(f"{widget}: {part.strip()!r} is a percentage; write it as {share}.")
    raise AtelierError(f"{widget}: {part.strip()!r} is neither a number nor a range such as 0-1(+0.25), 0:1:0.25 or 0-1[5].")


def _rounded(value: Decimal) -> Decimal:
    with localcontext() as context:
        context.prec = 40
        return value.quantize(PLACES)
