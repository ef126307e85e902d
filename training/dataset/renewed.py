"""A dataset whose pictures have changed since its folder was read: turned, drawn over, or taken out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import groupby

from ..errors import AtelierError
from ..files import is_file
from .clips import clips_of
from .index import Index, file_digest
from .masks import check_mask
from .plan import bucket_of
from .samples import Dataset, Sample, Subset, some
from .sliders import check_pair


def renewed(dataset: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """(the dataset with its files as they are on the disk now, what the person should know of that).

    Pictures that came meanwhile are not looked for. AtelierError naming one that cannot be read any more, and if none is left.
    """
    index, gone, changed, short = Index(), [], [], []

    def now(subset: Subset) -> Subset:
        kept: list[Sample] = []
        for _, several in groupby(subset.samples, lambda sample: sample.path if sample.stretch else id(sample)):
            own = list(several)
            name = own[0].path.name
            if not own[0].ready and not is_file(own[0].path):
                gone.append(name)
                continue
            fresh = own if own[0].ready else _clips(own, subset, index) if own[0].stretch else [_now(own[0], subset, index)]
            if not fresh:
                short.append(name)
            elif fresh != own:
                changed.append(name)
            kept += fresh
        return dataclasses.replace(subset, samples=tuple(kept))

    after = Dataset(tuple(subset for one in dataset.subsets if (subset := now(one)).samples))
    if not after.subsets:
        raise AtelierError("dataset: all of its pictures were taken out meanwhile. Put some back, and queue again.")
    notes = [
        (gone, "taken out meanwhile, and not trained on"), (changed, "changed meanwhile, and trained on as they are now"),
        (short, "changed meanwhile, have too few frames for clip_frames now, and are not trained on"),
    ]  # fmt: skip
    return after, tuple(f"{what}: {some(names)}." for names, what in notes if names)


def unlike(dataset: Dataset, check: Callable[[], None] = lambda: None) -> list[str]:
    """Names of files that are not here as the dataset, which another machine has read, knows them. ``check`` is called for every
    picture and may raise to cancel."""
    index, found = Index(), dict[str, None]()
    for subset in dataset.subsets:
        if subset.config.slider and subset.config.slider.prompts:
            continue  # its prompts stand in the place of files
        for sample in (one for one in subset.samples if one.ready is None):
            check()
            for part in filter(None, (sample, sample.before, *sample.controls)):
                if not is_file(part.path) or index.facts(part.path).key != part.origin:
                    found[part.path.name] = None
            if sample.mask not in (None, sample.path) and not (
                is_file(sample.mask) and file_digest(sample.mask) == sample.mask_key
            ):
                found[sample.mask.name] = None
    return list(found)


def _clips(own: list[Sample], subset: Subset, index: Index) -> list[Sample]:
    """The clips of a film as it is now; none where it has become too short."""
    before = dataclasses.replace(own[0], key=own[0].origin, stretch=None)
    now = _now(before, subset, index)
    if now.key == before.key:
        return [dataclasses.replace(clip, mask=now.mask, mask_key=now.mask_key) for clip in own]
    film = index.film(now.path)
    return [now] if film is None else clips_of(now, film, subset.config)


def _now(sample: Sample, subset: Subset, index: Index) -> Sample:
    facts = index.facts(sample.path)
    controls = tuple(_control(control, index) for control in sample.controls if is_file(control.path))
    if sample.before is not None:
        before = _before(sample.before, sample.path.name, index)
        check_pair(before, dataclasses.replace(sample, width=facts.width, height=facts.height))
        sample = dataclasses.replace(sample, before=before)
    mask, mask_key = sample.mask, sample.mask_key
    if mask == sample.path:
        mask_key = facts.key
    elif mask is not None:
        mask, mask_key = (mask, file_digest(mask)) if is_file(mask) else (None, "")
    if (facts.key, mask, mask_key) == (sample.key, sample.mask, sample.mask_key):
        return sample if controls == sample.controls else dataclasses.replace(sample, controls=controls)
    if mask is not None and mask != sample.path:
        check_mask(mask, sample.path, (facts.width, facts.height))
    shape = bucket_of(facts.width, facts.height, subset.config)
    focus = index.focus(sample.path, shape) if subset.config.crop == "focus" else None
    face = index.head(sample.path) if subset.config.crop == "head" else None
    return dataclasses.replace(
        sample, width=facts.width, height=facts.height, key=facts.key, look=facts.look, focus=focus, mask=mask,
        mask_key=mask_key, head=face.box if face else None, controls=controls,
    )  # fmt: skip


def _before(before: Sample, of: str, index: Index) -> Sample:
    if not is_file(before.path):
        raise AtelierError(f"{before.path}: this picture, from before {of}, was taken out. Put it back, or take both out.")
    return _control(before, index)


def _control(control: Sample, index: Index) -> Sample:
    facts = index.facts(control.path)
    if facts.key == control.key:
        return control
    return dataclasses.replace(control, width=facts.width, height=facts.height, key=facts.key, look=facts.look)
