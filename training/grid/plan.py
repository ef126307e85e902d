"""Which cells a grid has: the axes as typed in the widgets, and the trained epochs that travel on the wire."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import AtelierError
from ..run import SavedLoRA

MAX_CELLS = 1000
NUMBER = r"[+-]?\d+(?:\.\d+)?"
STEPPED = re.compile(rf"\s*({NUMBER})\s*-\s*({NUMBER})\s*(?:\(\s*\+\s*({NUMBER})\s*\))?\s*")
COUNTED = re.compile(rf"\s*({NUMBER})\s*-\s*({NUMBER})\s*\[\s*(\d+)\s*\]\s*")


@dataclass(frozen=True)
class Epochs:
    """All saved LoRAs of a run, first to last; the value of the EPOCHS wire."""

    name: str
    base: str
    """The family of the model they were trained on."""
    files: tuple[SavedLoRA, ...]
    captions: tuple[str, ...] = ()
    """The captions they were trained with."""


def parse_numbers(text: str, widget: str, default_step: float) -> list[float]:
    """``0.6, 0.8, 1``, ``0-1(+0.25)`` (with a step), ``0-1[5]`` (with a count), or any of them separated by commas.

    The notation is that of the well-known X/Y/Z plot. Values come once each, in the order typed.
    """
    out: list[float] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if match := COUNTED.fullmatch(part):
            low, high, count = float(match[1]), float(match[2]), int(match[3])
            if not 1 <= count <= MAX_CELLS:
                raise AtelierError(f"{widget}: {part!r} asks for {count} values; 1 to {MAX_CELLS} are possible.")
            values = [low + (high - low) * i / max(1, count - 1) for i in range(count)]
        elif match := STEPPED.fullmatch(part):
            low, high, step = float(match[1]), float(match[2]), float(match[3] or default_step)
            if step <= 0 or high < low or (high - low) / step > MAX_CELLS:
                raise AtelierError(f"{widget}: {part!r} is not a range; write it like 0-1(+0.25), smaller number first.")
            values = [low + step * i for i in range(int((high - low) / step + 1e-9) + 1)]
        elif re.fullmatch(NUMBER, part):
            values = [float(part)]
        else:
            raise AtelierError(f"{widget}: {part!r} is neither a number nor a range such as 0-1(+0.25) or 0-1[5].")
        out += [value for value in (round(v, 6) for v in values) if value not in out]
    if not out:
        raise AtelierError(f"{widget}: write at least one number, for example 0.6, 0.8, 1.0.")
    return out


def choose_epochs(epochs: Epochs, text: str) -> list[SavedLoRA]:
    """``all``, ``every 2``, or a list or range of epoch numbers; the last epoch is always among ``all`` and ``every N``."""
    if not epochs.files:
        raise AtelierError("epochs: there is no saved LoRA to show; train first.")
    text = text.strip().lower() or "all"
    if text == "all":
        return list(epochs.files)
    if match := re.fullmatch(r"every\s+(\d+)", text):
        every = max(1, int(match[1]))
        return [f for i, f in enumerate(epochs.files, 1) if i % every == 0 or i == len(epochs.files)]
    wanted = parse_numbers(text, "epochs", 1.0)
    chosen = [f for f in epochs.files if float(f.epoch) in wanted]
    if not chosen:
        there = ", ".join(str(f.epoch) for f in epochs.files)
        raise AtelierError(f"epochs: none of {text!r} was saved; there are {there}.")
    return chosen


def prompt_lines(text: str) -> list[str]:
    """One prompt a line; blank lines are left out."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise AtelierError("prompts: write at least one prompt, one a line.")
    return lines


def check_size(cells: int, width: int, height: int, pages: int) -> None:
    """Refuses what would never fit, before anything is rendered."""
    if cells > MAX_CELLS:
        raise AtelierError(f"This grid would have {cells} cells; at most {MAX_CELLS}. Use fewer epochs, strengths or prompts.")
    if cells // pages * width * height > 200_000_000:
        raise AtelierError(
            f"A page of this grid would have {cells // pages * width * height / 1e6:.0f} megapixels; at most 200. "
            "Use fewer epochs or strengths, or a smaller width and height."
        )
