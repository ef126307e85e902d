"""A dataset whose pictures have changed since its folder was read: turned, drawn over, or taken out."""

from __future__ import annotations

import dataclasses

from ..errors import AtelierError
from ..files import is_file
from .index import Index, file_digest
from .masks import check_mask
from .plan import bucket_of
from .samples import Dataset, Sample, Subset, some
from .sliders import check_pair


def renewed(dataset: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """(the dataset with its files as they are on the disk now, what the person should know of that).

    Pictures that came meanwhile are not looked for. AtelierError naming one that cannot be read any more, and if none is left.
    """
    index, gone, changed = Index(), [], []

    def now(subset: Subset) -> Subset:
        kept = []
        for sample in subset.samples:
            if not sample.ready and not is_file(sample.path):
                gone.append(sample.path.name)
                continue
            fresh = sample if sample.ready else _now(sample, subset, index)
            changed.extend([] if fresh == sample else [sample.path.name])
            kept.append(fresh)
        return dataclasses.replace(subset, samples=tuple(kept))

    after = Dataset(tuple(subset for one in dataset.subsets if (subset := now(one)).samples))
    if not after.subsets:
        raise AtelierError("dataset: all of its pictures were taken out meanwhile. Put some back, and queue again.")
    notes = [f"taken out meanwhile, and not trained on: {some(gone)}."] if gone else []
    return after, (*notes, *([f"changed meanwhile, and trained on as they are now: {some(changed)}."] if changed else []))


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
