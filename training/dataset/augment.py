"""Augmentation: shuffled captions, dropped tags, mirrored pictures, different at each sighting. Pure functions.

A sighting is numbered per picture over the whole run (0, 1, 2, ...), so a resumed run sees what an uninterrupted one would have.
"""

from __future__ import annotations

from pathlib import Path

from ..config import Ends, SliderConfig, SubsetConfig
from ..seeding import picture_random
from .samples import Dataset
from .words import joined, parts

FIXED = -1
"""Number of a sighting in which nothing is left to chance: for pictures that are only looked at, never trained on."""
CAPTION_VARIANTS = 16
"""Different orders of one caption that are encoded ahead of training; later sightings take them in turn. Every one costs a text
encoding on the disk (0.2 MB for CLIP-L, 4 MB for a T5 of 256 tokens); 16 orders are enough that none is learnt."""


def plain_caption(caption: str | None, config: SubsetConfig) -> str:
    """The caption, the first of several alternatives, with prefix and suffix: as it stands before anything is left to chance.

    For a slider from prompts it is its first target, whatever the picture's own caption is.
    """
    if config.slider and config.slider.prompts:
        return config.slider.ends[0].target
    return f"{config.caption_prefix}{alternatives(caption)[0]}{config.caption_suffix}".strip()


def sighted_ends(slider: SliderConfig, seed: int, key: str, sighting: int) -> Ends:
    """The prompts of a slider whose turn it is for this picture: all of them in a drawn order, again and again."""
    rows = list(slider.ends)
    if sighting == FIXED:
        return rows[0]
    picture_random("slider", seed, key).shuffle(rows)
    return rows[sighting % len(rows)]


def alternatives(caption: str | None) -> list[str]:
    """The captions among which a sighting chooses: only ``caption_lines`` = ``alternatives`` leaves several lines."""
    return (caption or "").split("\n")


def variants_of(caption: str | None, config: SubsetConfig) -> int:
    """After how many sightings the orders of a caption recur: every alternative is among them, as often as the others."""
    lines = len(alternatives(caption))
    return lines * -(-CAPTION_VARIANTS // lines) if varied(config) else lines


def _alternative(caption: str | None, seed: int, key: str, variant: int) -> str:
    """The caption whose turn it is: all of them in a drawn order, again and again."""
    lines = alternatives(caption)
    if len(lines) > 1:
        picture_random("alternatives", seed, key).shuffle(lines)
    return lines[variant % len(lines)]


def varied(config: SubsetConfig) -> bool:
    """Whether the parts of a caption differ between sightings."""
    return config.shuffle_captions or config.tag_dropout > 0


def caption_variant(caption: str | None, config: SubsetConfig, seed: int, key: str, variant: int) -> str:
    """One order of a caption's comma-separated parts.

    After prefix and suffix: split at commas outside brackets, the first ``keep_tokens`` parts stay, the rest is shuffled, each
    of the rest is dropped with probability ``tag_dropout``; joined with commas of the same kind.
    """
    text = plain_caption(_alternative(caption, seed, key, variant), config)
    if not varied(config):
        return text
    found = parts(text)
    kept, rest = found[: config.keep_tokens], found[config.keep_tokens :]
    draw = picture_random("caption", seed, key, variant)
    if config.shuffle_captions:
        draw.shuffle(rest)
    if config.tag_dropout > 0:
        rest = [part for part in rest if draw.random() >= config.tag_dropout]
    return joined(kept + rest, like=text)


def sighted_caption(caption: str | None, config: SubsetConfig, seed: int, key: str, sighting: int) -> str:
    """The caption of the ``sighting``-th time that the picture with this ``key`` is seen; "" when it is dropped as a whole."""
    if config.slider and config.slider.prompts:
        return sighted_ends(config.slider, seed, key, sighting).target
    if sighting == FIXED:
        return plain_caption(caption, config)
    if config.caption_dropout > 0 and picture_random("dropout", seed, key, sighting).random() < config.caption_dropout:
        return ""
    return caption_variant(caption, config, seed, key, sighting % variants_of(caption, config))


def caption_variants(caption: str | None, config: SubsetConfig, seed: int, key: str, sightings: int) -> list[str]:
    """Every caption that ``sighted_caption`` can give within the first ``sightings`` sightings, each once; of a slider both ends
    as well."""
    if config.slider and config.slider.prompts:
        return list(config.slider.prompts)
    count = max(1, min(sightings, variants_of(caption, config)))
    texts = [caption_variant(caption, config, seed, key, variant) for variant in range(count)]
    return list(dict.fromkeys(texts + ([""] if config.caption_dropout > 0 else [])))


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
