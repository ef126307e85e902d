"""Wildcard patterns, matched in time proportional to the text: none becomes an expression that could try every way of fitting."""

from __future__ import annotations

from collections.abc import Sequence

ANY = "\0"
"""One character, whichever."""


class Wildcards:
    """A pattern over a whole text in which ``*`` stands for any characters, also none."""

    def __init__(self, pattern: str) -> None:
        self.first, *rest = pattern.split("*")
        self.last = rest.pop() if rest else None
        """None without any ``*``."""
        self.between = [piece for piece in rest if piece]

    def matches(self, text: str) -> bool:
        """Every piece is taken where it comes first: a later place could only leave less room for those behind it."""
        if self.last is None:
            return text == self.first
        end = len(text) - len(self.last)
        if len(self.first) > end or not (text.startswith(self.first) and text.endswith(self.last)):
            return False
        at = len(self.first)
        for piece in self.between:
            found = text.find(piece, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return True


def fits(tokens: Sequence[str | frozenset[int]], text: str) -> bool:
    """Whether the tokens are the whole text: a character, ``ANY``, ``"*"``, or numbers of which one stands there in full.

    Of the stars only the last is ever tried anew: what stood before it came first, which leaves the most room.
    """
    at = place = 0
    star, since = -1, 0
    while place < len(text):
        if at < len(tokens) and tokens[at] == "*":
            star, since = at, place
            at += 1
        elif at < len(tokens) and (length := _length(tokens[at], text, place)):
            at, place = at + 1, place + length
        elif star >= 0:
            since += 1
            at, place = star + 1, since
        else:
            return False
    return all(token == "*" for token in tokens[at:])


def _length(token: str | frozenset[int], text: str, place: int) -> int:
    """How many characters the token takes there; 0 if it does not fit."""
    if isinstance(token, str):
        return int(token in (ANY, text[place]))
    end = place
    while end < len(text) and text[end] in "0123456789":
        end += 1
    number = text[place:end]
    return len(number) if 0 < len(number) < 9 and str(int(number)) == number and int(number) in token else 0
