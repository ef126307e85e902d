""" "1 steps" is no English: what is counted in a sentence is counted by ``errors.counted``, or can never be one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from lora_atelier.training.config import OptimizerConfig
from lora_atelier.training.errors import AtelierError, counted
from lora_atelier.training.optim import schedules

NOUNS = (
    "steps", "pictures", "epochs", "batches", "files", "layers", "tags", "tokens", "captions", "cells", "texts", "latents",
    "channels", "repeats", "prompts", "seeds", "strengths", "samples", "folders", "runs", "pages", "masks", "frames", "blocks",
)  # fmt: skip
NEVER_ONE = (
    "files would be saved",  # a caution about far too many
    "pictures would be drawn on the way",
    "frames in all would be drawn",
    "a sample of {frames} frames",  # one is a picture
    "steps/s",
    "files at once are too many",
    "which burns them",  # more steps than models of that kind want
    "pictures would have to be encoded anew",  # a kind of pictures
    "batches are outside 1 to",
    "steps is below 0",
    "has clips of {",  # of more than one frame
    "{row.frames} frames",
    "layers is outside 0 to",
    "of {updates} steps have less than",  # a twentieth of the run is at least two steps of it
    "cells; at most",
    "files are no caption files",  # a kind of files
    "files look like captions",
    "files may hold captions",
    "texts by picture",
    "captions and",
    "repeats. Set repeats",  # 0, or far too many
    "repeats of every picture",
    "repeats; the number in front",
    "of {pictures} pictures would be",  # one picture alone has a sentence of its own
    "of the dataset's {len(judge.pictures)} pictures",  # they are more than those that were looked at
    "of the {len(stems)} layers",  # of one, all or none are known
    "of {after.blocks} blocks",
    "of {after.movable} blocks",
    "of the first {step} steps",  # some of them are gone, and not all
    "over {self.window} steps",
    "more than {MOST} folders",
    "all {pages} pages together",
    "runs with {optimizer_arguments",  # a verb
    "for {points.PICTURES} pictures",
    "has {codec.channels} channels",  # no latent space has a single one
    "pictures do not fit a pass",  # for the log
    "pictures do not fit a layer",
    "strengths do not fit a layer",
    "frames is no length that",  # one is a picture, which every model draws
)


def sentences(path: Path) -> list[str]:
    """Every f-string of a module, with its values as they stand in the source."""
    return [
        ast.unparse(node)[2:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr)
    ]


def test_what_is_counted_has_a_form_for_one(root: Path) -> None:
    found = {
        f"{path.name}: {sentence}"
        for part in ("training", "nodes")
        for path in (root / part).rglob("*.py")
        for sentence in sentences(path)
        if any(re.search(rf"}} {noun}\b", sentence) for noun in NOUNS) and not any(fine in sentence for fine in NEVER_ONE)
    }
    assert not found, "\n".join(sorted(found))


def test_one_step_is_one_step() -> None:
    assert (counted(1, "step"), counted(2, "step"), counted(0, "step")) == ("1 step", "2 steps", "0 steps")
    assert (counted(1, "batch", "batches"), counted(3, "batch", "batches")) == ("1 batch", "3 batches")
    with pytest.raises(AtelierError, match="warmup: 1 step, but the run has only 1;"):
        schedules.check(OptimizerConfig(warmup_steps=1), 1)
