"""Errors for the person at the canvas: ``AtelierError``, and telling lack of memory from other errors."""

from __future__ import annotations

from collections.abc import Iterator

# What torch says for a GPU, for the computer's own memory, and for that on Windows.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")


class AtelierError(ValueError):
    """Something the person can mend. The message names the file or the widget and says what to do."""


class NotFinite(AtelierError):
    """A number that was to be kept or shown is NaN or infinite."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """ "1 picture", "2 pictures"; ``plural`` where it is not the noun and an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and those that it comes from, or in whose handling it came."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the computer, had no memory left. Known by name, since versions of torch keep the class elsewhere."""
    if {kind.__name__ for kind in type(error).__mro__} & {"OutOfMemoryError", "MemoryError"}:
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)
