"""Augmentation: shuffled captions, dropped tags, mirrored pictures, different at each sighting. Pure functions.

A sighting is numbered per picture over the whole run (0, 1, 2, ...), so a resumed run sees what an uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from pathlib import Path

from ..config import Ends, SliderConfig, SubsetConfig
from ..seeding import picture_random
from .choices import Pieces, combinations, drawn, letters, parsed, period, taken
from .samples import Dataset
from .words import composed, forms, joined, parts, word_starts

FIXED = -1
"""Number of a sighting in which nothing is left to chance: for pictures that are only looked at, never trained on."""
CAPTION_VARIANTS = 16
"""Different orders of one caption that are encoded ahead of training; later sightings take them in turn. Every one costs a text
encoding on the disk (0.2 MB for CLIP-L, 4 MB for a T5 of 256 tokens); 16 orders are enough that none is learnt."""


CHOICES = 64
"""Texts of one caption with choices that are encoded ahead, all that there are or else so many that are drawn among them."""


def alternatives(caption: str | None, config: SubsetConfig) -> list[Pieces]:
    """The captions among which a sighting chooses, with prefix and suffix: a line each, for only alternatives have several."""
    whole = (f"{config.caption_prefix}{line}{config.caption_suffix}" for line in (caption or "").split("\n"))
    return [parsed(text) if config.wildcards else (text,) for text in whole]


def plain_caption(caption: str | None, config: SubsetConfig) -> str:
    """The caption as it stands before anything is left to chance: the first of alternatives, and of choices the first option.

    For a slider from prompts it is its first target, whatever the picture's own caption is.
    """
    if config.slider and config.slider.prompts:
        return config.slider.ends[0].target
    return _without_separator(taken(alternatives(caption, config)[0], 0), config)


def sighted_ends(slider: SliderConfig, seed: int, key: str, sighting: int) -> Ends:
    """The prompts of a slider whose turn it is for this picture: all of them in a drawn order, again and again."""
    rows = list(slider.ends)
    if sighting == FIXED:
        return rows[0]
    picture_random("slider", seed, key).shuffle(rows)
    return rows[sighting % len(rows)]


def letters_of(caption: str | None, config: SubsetConfig) -> str:
    """Everything that may stand in a caption."""
    return "\n".join(map(letters, alternatives(caption, config)))


def count_of(caption: str | None, config: SubsetConfig) -> int:
    """How many texts there are to choose from."""
    return sum(map(combinations, alternatives(caption, config)))


def turns_of(lines: Sequence[Pieces]) -> tuple[int, bool]:
    """(after how many sightings the texts of these alternatives recur, whether all of them have come until then)."""
    own = lcm(*map(period, lines))
    if own == 1 or len(lines) * own <= CHOICES:
        return len(lines) * own, True
    return len(lines) * -(-CHOICES // len(lines)), False


def variants_of(caption: str | None, config: SubsetConfig) -> int:
    """After how many sightings the orders of a caption recur: every alternative is among them, as often as the others."""
    turns, _ = turns_of(alternatives(caption, config))
    return turns * -(-CAPTION_VARIANTS // turns) if varied(config) else turns


def _text(caption: str | None, config: SubsetConfig, seed: int, key: str, variant: int) -> str:
    """The text whose turn it is: all alternatives in a drawn order, again and again, and so all texts of each."""
    lines = alternatives(caption, config)
    turns, every = turns_of(lines)
    order = list(range(len(lines)))
    if len(lines) > 1:
        picture_random("alternatives", seed, key).shuffle(order)
    number = order[variant % len(lines)]
    if not every:
        return drawn(lines[number], picture_random("choices", seed, key, variant))
    own = list(range(turns // len(lines)))
    if len(own) > 1:
        picture_random("choices", seed, key, number).shuffle(own)
    return taken(lines[number], own[variant // len(lines) % len(own)])


def varied(config: SubsetConfig) -> bool:
    """Whether the parts of a caption differ between sightings."""
    return config.shuffle_captions or config.tag_dropout > 0


def _without_separator(text: str, config: SubsetConfig) -> str:
    """What holds the places of parts is no word of the caption."""
    separator = config.keep_separator
    if not separator or separator not in text:
        return text.strip()
    return joined((part for piece in text.split(separator) for part in parts(piece)), like=text)


def _places(text: str, config: SubsetConfig) -> list[tuple[str, bool]]:
    """The parts of a text, and whether each keeps its place."""
    separator = config.keep_separator
    pieces = text.split(separator) if separator else [text]
    found = []
    for number, piece in enumerate(pieces):
        held = len(pieces) > 1 and number != 1  # in front of the first, or behind the second
        found += [(part, held or bool(_triggers_in(part, config))) for part in parts(piece)]
    return [(part, held or place < config.keep_tokens) for place, (part, held) in enumerate(found)]


def _triggers_in(text: str, config: SubsetConfig) -> list[str]:
    """The trigger words that stand in a text, as they are written there but for capitals."""
    return [form for word in config.triggers if (form := form_in(text, word)) is not None]


def form_in(text: str, word: str) -> str | None:
    """``word`` with its brackets as they stand in a text, whatever its capitals; None where it does not stand there."""
    whole = composed(text).casefold()
    return next((form for form in forms(word) if any(True for _ in word_starts(whole, composed(form).casefold()))), None)


def caption_variant(caption: str | None, config: SubsetConfig, seed: int, key: str, variant: int) -> str:
    """One order of a caption's comma-separated parts.

    After prefix and suffix: choices are made; split at commas outside brackets; the first ``keep_tokens`` parts, those in front
    of ``keep_separator`` and behind a second one, and those with a trigger word keep their places; the rest is shuffled, each of
    the rest is dropped with probability ``tag_dropout``; joined with commas of the same kind.
    """
    text = _text(caption, config, seed, key, variant)
    if not varied(config):
        return _without_separator(text, config)
    places = _places(text, config)
    rest = [part for part, held in places if not held]
    draw = picture_random("caption", seed, key, variant)
    if config.shuffle_captions:
        draw.shuffle(rest)
    chance = config.tag_dropout
    stays = iter([(part, not chance or draw.random() >= chance) for part in rest])
    laid = [(part, True) if held else next(stays) for part, held in places]
    return joined((part for part, stay in laid if stay), like=text.replace(config.keep_separator, "") or text)


def dropped(text: str, config: SubsetConfig) -> str:
    """What is left of a caption that is dropped as a whole."""
    return joined(_triggers_in(text, config)) if config.dropped_caption == "trigger words" else ""


def sighted_caption(caption: str | None, config: SubsetConfig, seed: int, key: str, sighting: int) -> str:
    """The caption of the ``sighting``-th time that the picture with this ``key`` is seen; "" when it is dropped as a whole."""
    if config.slider and config.slider.prompts:
        return sighted_ends(config.slider, seed, key, sighting).target
    if sighting == FIXED:
        return plain_caption(caption, config)
    text = caption_variant(caption, config, seed, key, sighting % variants_of(caption, config))
    if config.caption_dropout > 0 and picture_random("dropout", seed, key, sighting).random() < config.caption_dropout:
        return dropped(text, config)
    return text


def caption_variants(caption: str | None, config: SubsetConfig, seed: int, key: str, sightings: int) -> list[str]:
    """Every caption that ``sighted_caption`` can give within the first ``sightings`` sightings, each once; of a slider both ends
    as well."""
    if config.slider and config.slider.prompts:
        return list(config.slider.prompts)
    count = max(1, min(sightings, variants_of(caption, config)))
    texts = [caption_variant(caption, config, seed, key, variant) for variant in range(count)]
    return list(dict.fromkeys(texts + ([dropped(text, config) for text in texts] if config.caption_dropout > 0 else [])))


def mirrored(config: SubsetConfig, seed: int, key: str, sighting: int) -> bool:
    """Whether the picture is mirrored this time: by an even lot where ``flip`` is on."""
    return config.flip and sighting != FIXED and picture_random("flip", seed, key, sighting).random() < 0.5


def trained_captions(dataset: Dataset) -> tuple[str, ...]:
    """The captions of the training pictures as they stand before anything is left to chance; latents have none."""
    training = (subset for subset in dataset.subsets if subset.config.role == "training" and not subset.ready)
    return tuple(plain_caption(sample.caption, subset.config) for subset in training for sample in subset.samples)


def trained_pictures(dataset: Dataset) -> tuple[Path, ...]:
    """The files of the training pictures, each once; latents have none, and what a slider is practised on is not learnt."""
    training = (subset for subset in dataset.subsets if subset.config.role == "training" and not subset.ready)
    training = (subset for subset in training if not (subset.config.slider and subset.config.slider.prompts))
    return tuple(dict.fromkeys(sample.path for subset in training for sample in subset.samples))


def spoken_triggers(dataset: Dataset) -> tuple[str, ...]:
    """The trigger words of the training pictures that stand in a caption, each once."""
    training = [subset for subset in dataset.subsets if subset.config.role == "training" and subset.config.triggers]
    texts = {id(one): "\n".join(letters_of(sample.caption, one.config) for sample in one.samples) for one in training}
    words = (word for one in training for word in one.config.triggers if form_in(texts[id(one)], word) is not None)
    return tuple(dict.fromkeys(words))
