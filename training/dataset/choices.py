"""Choices in captions: ``a {red|blue} hat``, of whose parts in braces every sighting takes one.

They are written as ComfyUI's own dynamic prompts are: nested as one likes, an option may be empty, and ``\\{``, ``\\}`` and
``\\|`` are the characters themselves. So are doubled braces, ``{{like this}}``, as kohya's ``enable_wildcard`` has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm
from random import Random

COUNTED = 10**6
"""So far combinations are counted."""
DEEPEST = 32
"""Levels of choices within choices; a brace below them is a letter."""
TOKEN = re.compile(r"\\[{}|]|\{\{[^{}]*\}\}|[{}|]|[^\\{}|]+|\\")
WEIGHT = re.compile(r"\s*(\d*\.?\d+::|\d+(-\d+)?\$\$)")


@dataclass(frozen=True)
class Braces:
    """``{a|b}``. One of its options is taken, each as often as the others."""

    options: tuple[Pieces, ...]


Pieces = tuple[str | Braces, ...]
"""Text and choices, one after the other."""


def parsed(text: str) -> Pieces:
    """The text apart; a brace without its partner is a letter."""
    stack: list[list[list[str | Braces]]] = [[[]]]
    for token in TOKEN.findall(text):
        inside = len(stack) > 1
        if token == "{" and len(stack) <= DEEPEST:
            stack.append([[]])
        elif token == "|" and inside:
            stack[-1].append([])
        elif token == "}" and inside:
            options = stack.pop()
            stack[-1][-1].append(Braces(tuple(map(tuple, options))))
        else:
            stack[-1][-1].append(_literal(token))
    while len(stack) > 1:
        around = stack[-2][-1]
        for number, option in enumerate(stack.pop()):
            around += ["|" if number else "{", *option]
    return tuple(stack[0][0])


def _literal(token: str) -> str:
    if len(token) > 1 and token[0] == "\\":
        return token[1:]
    return token[1:-1] if token.startswith("{{") else token


def period(pieces: Pieces) -> int:
    """After so many turns every option has come as often as its place gives it; more than ``COUNTED`` is that and one."""
    found = 1
    for choice in _choices(pieces):
        found = min(COUNTED + 1, found * _period(choice))
    return found


def _period(choice: Braces) -> int:
    return min(COUNTED + 1, len(choice.options) * lcm(*map(period, choice.options)))


def combinations(pieces: Pieces) -> int:
    """How many texts can come of it; more than ``COUNTED`` is that and one."""
    found = 1
    for choice in _choices(pieces):
        found = min(COUNTED + 1, found * sum(map(combinations, choice.options)))
    return found


def _choices(pieces: Pieces) -> Iterator[Braces]:
    return (piece for piece in pieces if isinstance(piece, Braces))


def taken(pieces: Pieces, turn: int) -> str:
    """The text of one turn of ``period``; in turn 0 the first option everywhere."""
    out = []
    for piece in pieces:
        if isinstance(piece, Braces):
            turn, own = divmod(turn, _period(piece))
            count = len(piece.options)
            piece = taken(piece.options[own % count], own // count)  # what one has of shorter periods begins again
        out.append(piece)
    return "".join(out)


def drawn(pieces: Pieces, draw: Random) -> str:
    """A text by lot, every option of a choice with the same chance."""
    return "".join(drawn(draw.choice(piece.options), draw) if isinstance(piece, Braces) else piece for piece in pieces)


def letters(pieces: Pieces) -> str:
    """Everything that may stand in a text, one after the other."""
    return "".join(
        " ".join(map(letters, piece.options)) if isinstance(piece, Braces) else piece for piece in pieces
    )  # fmt: skip


def offers(text: str) -> bool:
    """Whether it looks as if something was to be chosen: options between braces."""
    return "|" in text and any(len(choice.options) > 1 for choice in _choices(parsed(text)))


def is_unbalanced(text: str) -> bool:
    """Whether a brace has no partner."""
    depth = 0
    for token in TOKEN.findall(text):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if not 0 <= depth <= DEEPEST:
            return True
    return depth != 0


def is_weighted(pieces: Pieces) -> bool:
    """Whether an option begins with a weight, or a choice with a number of picks, as some other tools write them."""
    return any(
        (isinstance(option[0], str) and bool(WEIGHT.match(option[0]))) or is_weighted(option)
        for choice in _choices(pieces) for option in choice.options if option
    )  # fmt: skip
