"""Writes ``docs/presets.md`` from the data of the starting points: ``python -m tests.training.starting.presets_page``."""

from __future__ import annotations

from pathlib import Path

from lora_atelier.training.starting import points

PAGE = Path(__file__).resolve().parents[3] / "docs" / "presets.md"
HEAD = """# Starting points: what they set, and who says so

*Configure LoRA* has a list `preset`. One choice there sets *Load Dataset*, *Auto Caption*, *Configure LoRA*, *Train LoRA*
and *Epoch Weight Grid* of the graph that the node stands in. It is composed of three parts: the **model's** (resolution,
rank, rate, sampler), the **subject's** (length, captions) and the **memory's** (batch, and how a step is made to fit). All
numbers are in `training/starting/points.json`; this page is written from it.

Sources are configurations and pages that other trainers and the models' makers publish, as they were when this was written.
What has no source there stands under *our own choice*. None of these values has been tried by us with a published model on
a GPU.

What all have in common is our own choice unless a source is named: AdamW with a cosine and no warm-up, attention and feed-
forward layers, ten epochs that are all kept, the text encoder left alone. Noise levels and shift are `auto`: the family's
own, as [models](models.md) lists them, after kohya's sd-scripts and musubi-tuner. In sampling, ComfyUI's own shift of the
family holds.
"""
SUBJECTS = """## Subjects
| subject | steps, about | rank | captions |
| --- | --- | --- | --- |
{rows}

Repeats are set so that ten epochs come to that many steps with the pictures that are there (with 24 where nobody knows): 24
pictures at batch 1 are shown 8 times an epoch, which makes 1,920 steps. ai-toolkit's examples run for 2,000 steps and call
500 to 4,000 a good range. Caption dropout of 0.05 is ai-toolkit's; 0.1 for a style, the number of steps for a person and an
object, and an object's half rank are our own choice. A captioner that can be asked (`connected clip`) is asked to describe
what changes from picture to picture and not what is to be learnt, which is an old advice of many guides; its words are
ours.

Models that were captioned with **tags** get shuffled captions with the first tag kept, and 0.35 as a tagger's threshold,
which is what WD taggers are usually run with. The others are given **sentences**: nothing is shuffled.
"""
MEMORY = """## Memory
A step may need {share} of a GPU's memory: what its driver takes and a margin are subtracted. The first of these ways that
is expected to fit is taken: everything as loaded; computed twice (`gradient_checkpointing`); with eight-bit weights
(`base_weights` int8); with a growing share of blocks in main memory (`offload_blocks`). OneTrainer's presets go the same
way: int8 or fp8 weights and a share of 0.1 to 0.7 moved away, at 512 px. Large models are trained at fewer pixels where
there is little memory, which is our own choice between OneTrainer's 512 for all and ai-toolkit's 512 to 1024. AdamW8bit is
taken below 24 GB, where bitsandbytes is installed. Two pictures a step are taken with 24 GB where they fit.

Needs are the project's own forecast, from the published models' shapes without their weights; a test holds each line to it.

| model | {head} |
| --- | {line} |
{rows}

*twice*: everything is computed twice. *int8*: eight-bit weights. *n % away*: so many blocks wait in main memory.
"""


def way(fit: points.Fit) -> str:
    """How a model is made to fit, in a few words."""
    parts = [f"{fit.side} px"]
    if fit.batch_size > 1:
        parts.append(f"batch {fit.batch_size}")
    if fit.thrift.gradient_checkpointing:
        parts.append("twice")
    if fit.thrift.base_weights != "as loaded":
        parts.append(fit.thrift.base_weights)
    if fit.thrift.offload_blocks:
        parts.append(f"{fit.thrift.offload_blocks:.0%} away")
    return ", ".join(parts) if fit.fits else "does not fit"


def page() -> str:
    """The whole page."""
    parts = points.catalogue()
    subjects = "\n".join(
        f"| {name} | {part.steps:,} | {'as the model has it' if part.rank == 1 else f'{part.rank:g} of it'} | dropout "
        f"{parts.extras[name]['LoadDataset']['caption_dropout']} |"
        for name, part in parts.subjects.items()
    )
    rows = "\n".join(
        f"| {name} | {' | '.join(way(points.fitted(model, memory)) for memory in parts.memory.values())} |"
        for name, model in parts.models.items()
    )
    share = ", ".join(f"{memory.usable:.1f} of {name}" for name, memory in parts.memory.items())
    memory = MEMORY.format(share=share, rows=rows, head=" | ".join(parts.memory), line=" | ".join("---" for _ in parts.memory))
    text = [HEAD, SUBJECTS.format(rows=subjects), memory, "## Models"]
    for name, model in parts.models.items():
        text.append(
            f"### {name}\n{model.side} px, rank {model.rank}, alpha {model.alpha:g}, rate {model.learning_rate:g}, "
            f"{model.words}; drawn with {model.sampler} / {model.scheduler}, {model.steps} steps, "
            f"cfg {model.cfg:g}, {model.drawn} px.\n"
        )
        text.append(
            "\n".join(
                [
                    *(f"- {what}: {source}" for what, source in model.sources.items()),
                    f"- our own choice: {model.own or 'nothing'}",
                ]
            )
        )
        text.append("")
    return "\n".join(text).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
