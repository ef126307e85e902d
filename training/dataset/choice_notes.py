"""What a person should know of captions among whose words is chosen, or might be."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import SubsetConfig
from . import choices
from .augment import CHOICES, alternatives, turns_of
from .samples import Sample, some


def choice_notes(samples: Sequence[Sample], config: SubsetConfig) -> list[str]:
    """One sentence a kind."""
    whole = {s.path.name: f"{config.caption_prefix}{s.caption}{config.caption_suffix}" for s in samples if s.caption}
    said = []
    if not config.wildcards:
        if names := [name for name, text in whole.items() if choices.offers(text)]:
            said.append(
                f"{{a|b}} stands in captions and is read as it stands ({len(names)}): {some(names)}. Switch wildcards on to let "
                "every sighting take one of them."
            )
        return said
    if names := [name for name, text in whole.items() if any(map(choices.is_unbalanced, text.split("\n")))]:
        said.append(f"a brace without its partner is read as it stands ({len(names)}): {some(names)}.")
    lines = {sample.path.name: alternatives(sample.caption, config) for sample in samples if sample.caption}
    if names := [name for name, own in lines.items() if any(map(choices.is_weighted, own))]:
        said.append(
            f"a weight or a number of picks within braces is read as words ({len(names)}): {some(names)}. Write an option "
            "several times to have it more often."
        )
    if names := [name for name, own in lines.items() if not turns_of(own)[1]]:
        said.append(
            f"more combinations of choices than {CHOICES} ({len(names)}): {some(names)}. For each picture so many are drawn, and "
            "taken in turn."
        )
    return said
