"""A dataset whose pictures a slider is learnt on: by prompts, or from each picture and the one from before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..config import SliderConfig, SubsetConfig
from ..errors import AtelierError
from .masks import same_shape
from .samples import Dataset, Sample, Subset, counted, some
from .scan import control_notes

OF_CAPTIONS = (
    "caption_prefix", "caption_suffix", "shuffle_captions", "caption_dropout", "tag_dropout", "keep_tokens", "caption_lines",
    "wildcards", "further_captions", "trigger_words", "keep_separator", "dropped_caption",
)  # fmt: skip
"""Settings of captions, which have no part in a slider from prompts."""


def slider_of(dataset: Dataset, slider: SliderConfig) -> Dataset:
    """The pictures of ``dataset``, of whatever role, for training ``slider``; what of it isn't used is among the warnings.

    AtelierError for latents, for what is a slider's already, where no picture is left, and naming pictures that are no pairs
    where these are asked for.
    """
    if already := [subset.config.folder for subset in dataset.subsets if subset.config.slider]:
        raise AtelierError(
            f"dataset: {already[0]} comes from another Slider Dataset, whose prompts or pairs are in it already. Use one Slider "
            "Dataset in a row, behind all folders; it takes several targets, one a line."
        )
    subsets = tuple(_subset(subset, slider) for subset in dataset.subsets if subset.config.role != "validation")
    left_out = sum(len(subset.samples) for subset in dataset.subsets if subset.config.role == "validation")
    if not any(subset.samples for subset in subsets):
        raise AtelierError("dataset: there is no picture in it for the slider. Connect Render Regularisation, which draws some.")
    if left_out:
        note = f"{counted(left_out, 'picture')} for validation are not used: a slider has no loss on pictures that are held out."
        subsets = (replace(subsets[0], warnings=(*subsets[0].warnings, note)), *subsets[1:])
    return Dataset(subsets)


def _subset(subset: Subset, slider: SliderConfig) -> Subset:
    name = subset.config.folder
    if subset.ready:
        raise AtelierError(f"dataset: {name} came as latents with conditioning, and a slider needs pictures. Connect images.")
    said, config = list(subset.warnings), replace(subset.config, slider=slider, role="training", validation_share=0.0)
    if subset.config.validation_share:
        said.append(f"{name}: nothing is held out, since a slider has no loss on pictures that are.")
    if slider.source == "prompts":
        usual = SubsetConfig(name)
        idle = [setting for setting in OF_CAPTIONS if getattr(config, setting) != getattr(usual, setting)]
        if idle:
            said.append(f"{name}: {', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no part in a slider from prompts.")
            config = replace(config, **{setting: getattr(usual, setting) for setting in idle})
        target = slider.ends[0].target
        controls = any(sample.controls for sample in subset.samples)
        samples = tuple(replace(sample, caption=target) for sample in subset.samples)
        notes = (*subset.notes, f"{name}: the captions are not read; the slider's prompts stand in their place.")
        if controls:
            said.append(
                f"{name}: its control pictures are shown to models that edit; for their difference choose pairs of pictures."
            )
        return replace(subset, config=config, samples=samples, warnings=tuple(said), notes=notes)
    samples = tuple(_pairs(subset))
    # Which is said of control pictures, and these are cut with their picture.
    said = [sentence for sentence in said if sentence not in control_notes(subset.config, subset.samples)]
    several = [sample.path.name for sample in subset.samples if len(sample.controls) > 1]
    if several:
        said.append(f"{name}: of several control pictures only the first is the one from before: {some(several)}.")
    return replace(subset, config=config, samples=samples, warnings=tuple(said))


def _pairs(subset: Subset) -> Iterator[Sample]:
    """Each picture with the one from before it, which is no control picture any more."""
    bare = [sample.path.name for sample in subset.samples if not sample.controls]
    if bare:
        raise AtelierError(
            f"dataset: {counted(len(bare), 'picture')} of {subset.config.folder} without a picture from before: {some(bare)}. "
            "Put them into a folder control beside the pictures, by the same names."
        )
    for sample in subset.samples:
        before = sample.controls[0]
        check_pair(before, sample)
        yield replace(sample, before=before, controls=())


def check_pair(before: Sample, after: Sample) -> None:
    """AtelierError unless the two pictures have one shape."""
    if not same_shape((before.width, before.height), (after.width, after.height)):
        raise AtelierError(
            f"{before.path}: it has {before.width} x {before.height} pixels and another shape than {after.path.name} "
            f"({after.width} x {after.height}). The two pictures of a pair differ in what the slider learns alone."
        )
