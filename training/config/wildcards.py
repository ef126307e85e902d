"""Wildcard patterns, matched in time proportional to the text: none becomes an expression that could try every way of fitting."""

from __future__ import annotations


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
