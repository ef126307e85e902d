"""Settings of captioners: generation and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import AtelierError, counted


@dataclass(frozen=True)
class GenerationSettings:
    """Beam search settings of a language model; lengths are in tokens of the model and don't count the prompt."""

    prompt: str = ""
    """BLIP: the text that the model continues; its answer begins with it. Others: what they are asked."""
    beams: int = 4
    min_length: int = 5
    max_length: int = 75

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise AtelierError(f"beams: {self.beams} is below 1.")
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            raise AtelierError(
                f"max length: {counted(self.max_length, 'token')} cannot hold a caption of at least "
                f"{counted(self.min_length, 'token')}; "
                "raise it, or lower min length."
            )


@dataclass(frozen=True)
class TaggerSettings:
    """Which of a tagger's tags are taken; probabilities are between 0 and 1."""

    general: float = 0.6
    """A tag is taken from this probability on."""
    character: float = 0.6
    """The same for names of characters."""
    rating: bool = False
    """Whether the most probable rating is a tag too."""
    blacklist: tuple[str, ...] = ()
    """Tags that are never taken; ``*`` stands for any letters."""

    def __post_init__(self) -> None:
        for widget, value in (("general_threshold", self.general), ("character_threshold", self.character)):
            if not 0 <= value <= 1:
                raise AtelierError(f"{widget}: {value} is not between 0 and 1. A tag is taken from this probability on.")
