"""A cancel in the middle of a caption, and a count of the steps that the model has done by then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class After:
    """A check that cancels when it is asked for the ``count``-th time."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == self.count:
            raise KeyboardInterrupt


@contextmanager
def counted(model: Any) -> Iterator[list[None]]:
    """A list that grows by one with every call of the model that gives a token its probabilities."""
    calls: list[None] = []
    handle = model.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()
