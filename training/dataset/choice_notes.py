"""What a person should know of captions among whose words is chosen, or might be."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import SubsetConfig
from . import choices
from .augment import CHOICES, alternatives, form_in, letters_of, turns_of
from .names import key
from .samples import Sample, counted, some


def choice_notes(samples: Sequence[Sample], config: SubsetConfig) -> list[str]:
    """One sentence a kind."""
    return [*_unused(samples, config), *_braces([sample for sample in samples if sample.caption], config)]


def _unused(samples: Sequence[Sample], config: SubsetConfig) -> list[str]:
    """Trigger words, separator and endings that are named and stand nowhere, or not everywhere."""
    texts = {sample.path: letters_of(sample.caption, config) for sample in samples}
    said = []
    for word in config.triggers:
        without = [path.name for path, text in texts.items() if form_in(text, word) is None]
        if len(without) == len(texts):
            said.append(f"trigger_words: {word!r} stands in no caption. Correct it, or write it into the captions.")
        elif without:
            said.append(f"trigger_words: {word!r} is not in {len(without)} of {counted(len(texts), 'caption')}: {some(without)}.")
    separator = config.keep_separator
    if separator and not any(separator in text for text in texts.values()):
        said.append(f"keep_separator: {separator!r} stands in no caption, so it holds nothing. Correct it, or leave it empty.")
    files = [key(file.name) for sample in samples for file in sample.further]
    there = [ending for ending in config.further_endings if any(file.endswith(key(ending)) for file in files)]
    if config.captions and (none := [ending for ending in config.further_endings if ending not in there]):
        said.append(f"further_captions: no picture has a file with {', '.join(none)}, as 1{none[0]} would be of 1.png.")
    return said


def _braces(samples: Sequence[Sample], config: SubsetConfig) -> list[str]:
    """What is read as a choice, and what is not."""
    whole = [(s.path.name, f"{config.caption_prefix}{s.caption}{config.caption_suffix}") for s in samples]
    said = []
    if not config.wildcards:
        if names := [name for name, text in whole if choices.offers(text)]:
            said.append(
                f"{{a|b}} stands in captions and is read as it stands ({len(names)}): {some(names)}. Switch wildcards on to let "
                "every sighting take one of them."
            )
        return said
    if names := [name for name, text in whole if any(map(choices.is_unbalanced, text.split("\n")))]:
        said.append(f"a brace without its partner is read as it stands ({len(names)}): {some(names)}.")
    lines = [(sample.path.name, alternatives(sample.caption, config)) for sample in samples]
    if names := [name for name, own in lines if any(map(choices.is_weighted, own))]:
        said.append(
            f"a weight or a number of picks within braces is read as words ({len(names)}): {some(names)}. Write an option "
            "several times to have it more often."
        )
    if names := [name for name, own in lines if not turns_of(own)[1]]:
        said.append(
            f"more combinations of choices than {CHOICES} ({len(names)}): {some(names)}. For each picture so many are drawn, and "
            "taken in turn."
        )
    return said
