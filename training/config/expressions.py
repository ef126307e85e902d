"""Regular expressions that a person writes, searched in time proportional to the text.

Python's own engine tries every way in which an expression could fit, which for some is more than a computer can do in a year.
Here all ways are followed at once (Thompson 1968). What cannot be done so, references back and looking around, is refused.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

Test = Callable[[str], bool]
MOST_STATES = 1000
MOST_REPEATS = 100
DEEPEST = 30
"""Groups inside each other."""
REMEMBERED = 10_000
"""Steps that are kept, so that the next text takes them at once."""
KINDS: dict[str, Test] = {"d": str.isdecimal, "w": lambda c: c.isalnum() or c == "_", "s": str.isspace}
PLACES = {"^": "start", "A": "start", "$": "end", "Z": "end", "b": "border", "B": "inside"}
CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}


@dataclass(frozen=True)
class Node:
    """A part of an expression: ``one`` character, a ``place``, a ``chain``, ``choice`` or repetition of parts."""

    kind: str
    parts: tuple[Node, ...] = ()
    test: Test | None = None
    place: str = ""
    least: int = 0
    most: int | None = None


class Expression:
    """An expression that is searched in texts; ValueError with the reason if it is none."""

    def __init__(self, source: str) -> None:
        self._moves: list[list[tuple[Test | None, str, int]]] = []
        """For each state (test of a character or None, place where a step without one is allowed, next state)."""
        self._seen: dict[tuple[frozenset[int], bool | None, str], tuple[bool, frozenset[int]]] = {}
        tree = _Parser(source).parsed()
        self._end = self._state()
        self._start = self._built(tree, self._end)

    def found_in(self, text: str) -> bool:
        """Whether it fits any part of the text."""
        states: frozenset[int] = frozenset()
        before: bool | None = None
        for character in (*text, ""):
            key = (states, before, character)
            step = self._seen.get(key)
            if step is None:
                if len(self._seen) > REMEMBERED:
                    self._seen.clear()
                step = self._seen[key] = self._step(*key)
            fits, states = step
            if fits:
                return True
            before = KINDS["w"](character) if character else None
        return False

    def _step(self, states: frozenset[int], before: bool | None, character: str) -> tuple[bool, frozenset[int]]:
        """(whether the end was reached, the states behind ``character``, "" at the text's end) from all that may begin here."""
        after = bool(character) and KINDS["w"](character)
        border = bool(before) != after
        here = {"": True, "start": before is None, "end": not character, "border": border, "inside": not border}
        reached, todo, behind = set(), [*states, self._start], set()
        while todo:
            state = todo.pop()
            if state in reached:
                continue
            reached.add(state)
            for test, place, following in self._moves[state]:
                if test is None and here[place]:
                    todo.append(following)
                elif test is not None and character and test(character):
                    behind.add(following)
        return self._end in reached, frozenset(behind)

    def _state(self, *moves: tuple[Test | None, str, int]) -> int:
        if len(self._moves) >= MOST_STATES:
            raise ValueError("it is too long")
        self._moves.append(list(moves))
        return len(self._moves) - 1

    def _built(self, node: Node, end: int) -> int:
        """The state from which ``node`` leads to ``end``."""
        if node.kind == "one":
            return self._state((node.test, "", end))
        if node.kind == "place":
            return self._state((None, node.place, end))
        if node.kind == "choice":
            return self._state(*((None, "", self._built(part, end)) for part in node.parts))
        if node.kind == "chain":
            for part in reversed(node.parts):
                end = self._built(part, end)
            return end
        (part,) = node.parts
        if node.most is None:
            again = self._state((None, "", end))
            self._moves[again].append((None, "", self._built(part, again)))
            start = again
        else:
            start = end
            for _ in range(node.most - node.least):
                start = self._state((None, "", end), (None, "", self._built(part, start)))
        for _ in range(node.least):
            start = self._built(part, start)
        return start


class _Parser:
    def __init__(self, source: str) -> None:
        self.fold = source.startswith("(?i)")
        self.source, self.at, self.depth = source.removeprefix("(?i)"), 0, 0

    def parsed(self) -> Node:
        node = self.choice()
        if self.at < len(self.source):
            raise ValueError("a ) has no (")
        return node

    def next(self, text: str) -> bool:
        """Whether ``text`` comes next; if so it is passed."""
        if self.source.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def take(self) -> str:
        if self.at >= len(self.source):
            raise ValueError("it ends too early")
        self.at += 1
        return self.source[self.at - 1]

    def choice(self) -> Node:
        chains = [self.chain()]
        while self.next("|"):
            chains.append(self.chain())
        return chains[0] if len(chains) == 1 else Node("choice", tuple(chains))

    def chain(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.source) and self.source[self.at] not in "|)":
            parts.append(self.repeated(self.one()))
        return Node("chain", tuple(parts))

    def repeated(self, node: Node) -> Node:
        bounds = self.bounds()
        if bounds is None:
            return node
        if node.kind == "place":
            raise ValueError("there is nothing to repeat")
        if not self.next("?") and self.bounds() is not None:  # "a+?" fits what "a+" fits
            raise ValueError("two repetitions follow each other")
        return Node("repeat", (node,), least=bounds[0], most=bounds[1])

    def bounds(self) -> tuple[int, int | None] | None:
        for sign, found in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.next(sign):
                return found
        if not self.source.startswith("{", self.at):
            return None
        inner, closed, _ = self.source[self.at + 1 :].partition("}")
        low, comma, high = inner.partition(",")
        if (
            not closed
            or not all(not n or (n.isascii() and n.isdecimal() and len(n) < 4) for n in (low, high))
            or not (low or high)
        ):
            return None  # as elsewhere, such a brace stands for itself
        self.at += len(inner) + 2
        least, most = int(low or 0), int(high) if high else None if comma else int(low)
        if max(least, most or 0) > MOST_REPEATS or (most is not None and most < least):
            raise ValueError(f"{{{inner}}} is no number of repetitions up to {MOST_REPEATS}")
        return least, most

    def one(self) -> Node:
        character = self.take()
        if character == "(":
            return self.group()
        if character == "[":
            return self.tested(self.class_())
        if character == ".":
            return self.tested(lambda c: c != "\n", fold=False)
        if character in "^$":
            return Node("place", place=PLACES[character])
        if character in "*+?":
            raise ValueError("there is nothing to repeat")
        if character == "\\":
            if self.source[self.at : self.at + 1] in tuple("AZbB"):
                return Node("place", place=PLACES[self.take()])
            return self.tested(self.escaped())
        return self.tested(lambda c: c == character)

    def group(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError("its groups lie too deep in each other")
        if self.next("?P<"):
            while self.take() != ">":
                pass
        elif self.next("?") and not self.next(":"):
            raise ValueError(f"(?{self.source[self.at : self.at + 1]} is not offered here")
        node = self.choice()
        if not self.next(")"):
            raise ValueError("a ( is not closed")
        self.depth -= 1
        return node

    def escaped(self) -> Test:
        character = self.take()
        if test := KINDS.get(character):
            return test
        if test := KINDS.get(character.lower()):
            return lambda c: not test(c)
        if character in CONTROLS:
            return lambda c: c == CONTROLS[character]
        if character in string.ascii_letters + string.digits:
            raise ValueError(f"\\{character} is not offered here")
        return lambda c: c == character

    def class_(self) -> Test:
        negated = self.next("^")
        tests: list[Test] = []
        while not (tests and self.next("]")):
            first = self.take()  # a "]" in the first place stands for itself
            if first == "\\":
                tests.append(self.escaped())
            elif self.source.startswith("-", self.at) and self.source[self.at + 1 : self.at + 2] not in ("]", ""):
                self.take()
                last = self.take()
                last = self.take() if last == "\\" else last
                if last < first:
                    raise ValueError(f"{first}-{last} is no range")
                tests.append(_between(first, last))
            else:
                tests.append(_between(first, first))
        return (lambda c: not any(test(c) for test in tests)) if negated else (lambda c: any(test(c) for test in tests))

    def tested(self, test: Test, fold: bool = True) -> Node:
        folded: Test = lambda c: test(c) or test(c.lower()) or test(c.upper())  # noqa: E731
        return Node("one", test=folded if self.fold and fold else test)


def _between(low: str, high: str) -> Test:
    return lambda c: low <= c <= high
