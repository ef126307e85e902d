"""How a language model is asked."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import AtelierError


@dataclass(frozen=True)
class GenerationSettings:
    """Beam search settings; lengths are in tokens of the model and don't count the prompt."""

    prompt: str = ""
    """The text that the model continues; its answer begins with it."""
    beams: int = 4
    min_length: int = 5
    max_length: int = 75

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise AtelierError(f"beams: {self.beams} is below 1.")
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            raise AtelierError(
                f"max length: {self.max_length} tokens cannot hold a caption of at least {self.min_length} tokens; "
                "raise it, or lower min length."
            )
