"""Settings of a slider: a LoRA with two directions, more of something at strength 1 and less of it at -1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .lists import listed
from .refusal import check_kinds, choice, refuse

SliderSource = Literal["prompts", "pairs of pictures"]


@dataclass(frozen=True)
class Ends:
    """The prompts between which a slider moves what is drawn for its target."""

    target: str
    positive: str
    negative: str


@dataclass(frozen=True)
class SliderConfig:
    """From what the two directions of a slider are learnt; prompts are one a line."""

    source: SliderSource = "prompts"
    target: str = ""
    """What the slider works on, such as ``a person``; empty: whatever is drawn."""
    positive: str = ""
    """The same with much of what the slider is for; a line for each of the target's, or one for all."""
    negative: str = ""
    """The same with its opposite."""
    preserve: str = ""
    """What the slider is to leave alone, such as ``male, female``: it stands in front of the prompts, each in its turn."""
    guidance: float = 3.0
    """How far strength 1 goes: so many times from the negative to the positive answer."""

    def __post_init__(self) -> None:
        check_kinds(self)
        choice("source", self.source, SliderSource)
        refuse(not 0.01 <= self.guidance <= 100, f"guidance: {self.guidance} is outside 0.01 to 100; 3 is usual.")
        if self.source == "pairs of pictures":
            return
        targets, rows = len(self._lines(self.target)), self._lines(self.positive)
        for widget, prompts in (("positive", rows), ("negative", self._lines(self.negative))):
            refuse(not any(prompts), f"{widget}: write what the slider is drawn for at this end, such as 'an old person'.")
            refuse(
                len(prompts) not in (1, targets),
                f"{widget}: there are {len(prompts)} lines and {targets} of target. Write one for each line of target, or one.",
            )
        same = next((row for row in self.ends if row.positive == row.negative), None)
        refuse(same is not None, f"negative: {same and same.negative!r} is the positive prompt too, so nothing would be learnt.")

    @staticmethod
    def _lines(text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if line.strip()] or [""]

    @property
    def ends(self) -> tuple[Ends, ...]:
        """Every target with its two ends, once for each of what is preserved."""
        targets = self._lines(self.target)
        sides = [(side * len(targets) if len(side) == 1 else side) for side in map(self._lines, (self.positive, self.negative))]
        kept = listed(",".join(self.preserve.splitlines())) or ("",)
        return tuple(
            Ends(*(", ".join(filter(None, (word, prompt))) for prompt in row))
            for row in zip(targets, *sides, strict=True)
            for word in kept
        )

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every text that is read, each once; none where pictures are the ends."""
        if self.source != "prompts":
            return ()
        return tuple(dict.fromkeys(text for row in self.ends for text in (row.target, row.positive, row.negative)))

    @property
    def identity(self) -> str:
        """All that decides what is learnt, as one text."""
        if self.source != "prompts":
            return self.source
        return "; ".join(f"{row.target!r}: {row.negative!r} to {row.positive!r}" for row in self.ends) + f", {self.guidance:g}"
