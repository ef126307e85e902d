"""Running jobs: their status for the pages, and commands from them.

The loop's thread writes here and polls its commands at every step; the server's thread reads and sends. Nothing else is shared.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

Command = Literal["stop", "save", "sample"]
"""End the run and keep what is there; write a LoRA file; draw the samples: each after the step under way."""
COMMANDS: tuple[str, ...] = get_args(Command)
Listener = Callable[[dict[str, Any]], None]

_runs: dict[str, Live] = {}
_drawn = Counter[str]()
"""Of how many grids under way a run is part."""
_lock = threading.Lock()


class Live:
    """One run while it trains."""

    def __init__(self, name: str, tell: Listener, **facts: object):
        """``facts``: what does not change, such as ``total``; all plain JSON values. ``tell`` must not block."""
        self.name, self._tell = name, tell
        self._facts = {"name": name, "phase": "preparing", "started": time.time(), **facts}
        self._commands: set[str] = set()
        self._guard = threading.Lock()

    def update(self, **facts: object) -> None:
        """Changes what is known, and tells the pages; JSON has no NaN and no infinity, which become None."""
        with self._guard:
            self._facts.update({name: None if _is_endless(value) else value for name, value in facts.items()})
        self._tell(self.status())

    def status(self) -> dict[str, Any]:
        """Everything known, as plain JSON values; ``commands``: what was asked and is not done yet."""
        with self._guard:
            return {**self._facts, "commands": sorted(self._commands)}

    def send(self, command: Command) -> None:
        """Asks the loop; asking twice is asking once."""
        with self._guard:
            self._commands.add(command)
        self._tell(self.status())

    def pop_commands(self) -> frozenset[str]:
        """The commands since the last call, which are the caller's from here on. Called every step, so it costs nothing."""
        if not self._commands:
            return frozenset()
        with self._guard:
            taken = frozenset(self._commands)
            self._commands.clear()
        return taken


def _is_endless(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def find(name: str) -> Live | None:
    """The run of this name, if it trains now."""
    with _lock:
        return _runs.get(name)


def running() -> list[str]:
    """Names of the runs that train now."""
    with _lock:
        return list(_runs)


@contextmanager
def entered(live: Live, cancelled: Callable[[BaseException], bool]) -> Iterator[Live]:
    """``live`` can be found while the block lasts; its end is told as ``finished``, ``cancelled`` or ``failed``."""
    with _lock:
        _runs[live.name] = live
    end: Mapping[str, str] = {"phase": "finished"}
    try:
        live.update()
        yield live
    except BaseException as error:
        end = {"phase": "cancelled"} if cancelled(error) else {"phase": "failed", "why": str(error)}
        raise
    finally:
        with _lock:
            _runs.pop(live.name, None)
        live.update(**end)


def drawn() -> set[str]:
    """Names of the runs of which a grid is drawn now."""
    with _lock:
        return {name for name, count in _drawn.items() if count > 0}


@contextmanager
def drawing(names: Iterable[str]) -> Iterator[None]:
    """While the block lasts, a grid of these runs is drawn."""
    names = list(names)
    with _lock:
        _drawn.update(names)
    try:
        yield
    finally:
        with _lock:
            _drawn.subtract(names)
