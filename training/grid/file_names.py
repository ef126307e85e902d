"""What a LoRA file's name and metadata say of it: of which series it is, and where in the training it was saved.

Read are the habits of this pack, kohya's tools and musubi-tuner (``name-000004`` an epoch, ``name-step00000500`` a step, ``ss_*``
metadata), of ai-toolkit (``name_000001500`` a step, ``training_info`` metadata), OneTrainer
(``name2024-01-31_12-00-00-save-500-4-100``: steps, whole epochs, steps of the next), of diffusers, PEFT, SimpleTuner,
diffusion-pipe and finetrainers, whose files all have one name in folders called ``checkpoint-500``, ``epoch4`` or ``000500``
(or in a folder in these), and of DiffSynth (``epoch-0``). A number of which nobody says what it counts stays a part of a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

ALIKE = re.compile(
    r"(?:(?:pytorch_)?(?:lora|adapter|model)(?:_(?:model|weights))?|diffusion_pytorch_model|pytorch_lora_weights(?:[._]ema)?|ema_model)",
    re.IGNORECASE,
)
"""Names that a trainer gives to every file, so that the folder is what tells them apart."""
COUNTER = re.compile(
    r"(?P<word>checkpoint|global_?step|step|epoch|iter(?:ation)?|save)s?[-_ =]?(?P<number>\d{1,10})|(?P<bare>0\d{5})",
    re.IGNORECASE,
)
"""A name that is nothing but a count: of folders, and of DiffSynth's files; finetrainers' have a bare number of six digits."""
ONE_TRAINER = re.compile(
    r"(?P<stem>.*?)-?\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(?:-save)?-(?P<step>\d{1,10})-(?P<epoch>\d{1,10})-\d{1,10}"
)
STEP = re.compile(r"(?P<stem>.+?)(?:[-_. ]+(?:global_?)?steps?[-_= ]?|_(?=\d{9}\Z))(?P<number>\d{1,10})", re.IGNORECASE)
EPOCH = re.compile(r"(?P<stem>.+?)(?:-(?=\d{6}\Z)|[-_. ]+e(?:p(?:och)?)?[-_= ]?)(?P<number>\d{1,10})", re.IGNORECASE)
TAIL = re.compile(
    r"(?P<stem>.*\d)"
    r"(?P<tail>(?:[-_. ]+(?:(?:high|low)(?:[-_ ]?noise)?|ema|comfy(?:ui)?|converted|diffusers|kohya|b?fp?(?:8|16|32)))+)",
    re.IGNORECASE,
)
"""What may follow the number: of the halves of a model with two experts (ai-toolkit), and of what other tools have converted."""
NUMBERED = re.compile(r"(?P<stem>.+?)[-_. ]*[-_. (](?P<number>\d{1,10})\)?")
MEAN_OF = "lora_atelier.mean_of"
"""What the metadata of a kept mean have: the files that it is of. It is no epoch of their run."""
STEPS = ("checkpoint", "globalstep", "global_step", "step", "steps", "iter", "iteration")


@dataclass(frozen=True)
class Told:
    """What is known of one file."""

    series: str
    """The path that the files of one training share."""
    part: str
    """What its name has beside that; empty for a file without a number."""
    counts: Literal["epoch", "step", "folder", "number", "nothing"]
    """What the number in its name counts: ``folder`` for that of a folder, ``number`` where nobody says."""
    number: int = 0
    epoch: int = 0
    """0: not known."""
    step: int = 0
    """0: not known."""

    @property
    def label(self) -> str:
        """What it is called among the files of its series; empty where nothing tells."""
        if self.counts == "folder":
            return self.part
        if self.counts == "step":
            return f"step {self.step}"
        if self.epoch and (self.counts == "epoch" or not self.by_steps):
            return f"epoch {self.epoch}"
        return f"step {self.step}" if self.step else self.part

    @property
    def shown(self) -> int:
        """The number in its label; -1 without one."""
        found = re.search(r"[0-9]+", self.label)
        return int(found[0]) if found else -1

    by_steps: bool = False
    """Whether its metadata counts steps foremost, as ai-toolkit does."""


def tell(name: str, facts: Mapping[str, str]) -> Told:
    """What the name of a file (as the loaders list it) and its metadata say; the metadata wins."""
    path = PurePosixPath(name.replace("\\", "/"))
    path = path.with_name(path.name.rpartition(".")[0] or path.name)
    if MEAN_OF in facts:
        return Told(str(path), "", "nothing")
    if ALIKE.fullmatch(path.name) and len(path.parts) > 1:
        path = path.parent
    by_name = _counted(path) or _file(path)
    epoch, step, by_steps = _measured(facts)
    return Told(
        by_name.series, by_name.part, by_name.counts, by_name.number, epoch or by_name.epoch, step or by_name.step, by_steps
    )  # fmt: skip


def _counted(path: PurePosixPath) -> Told | None:
    """Of a file or folder whose whole name is a count, or that lies in such a folder (``checkpoint-500/ema``); else None."""
    inner = ""
    match = COUNTER.fullmatch(path.name)
    if match is None and len(path.parts) > 1 and _file(path).counts == "nothing":
        inner, path = path.name, path.parent
        match = COUNTER.fullmatch(path.name)
    if match is None:
        return None
    number, word = int(match["number"] or match["bare"]), (match["word"] or "step").lower()
    series = str(path.parent) if len(path.parts) > 1 else word
    epoch, step = (number if word == "epoch" else 0), (number if word in STEPS else 0)
    return Told(f"{series}/{inner}" if inner else series, path.name, "folder", number, epoch, step)


def _file(path: PurePosixPath) -> Told:
    def beside(stem: str) -> str:
        return str(path.with_name(stem)) if stem else str(path.parent) if len(path.parts) > 1 else "save"

    if (match := TAIL.fullmatch(path.name)) and (told := _file(path.with_name(match["stem"]))).counts in ("epoch", "step"):
        return replace(told, series=told.series + match["tail"])
    if match := ONE_TRAINER.fullmatch(path.name):
        stem = match["stem"].rstrip("-_ ")
        return Told(beside(stem), path.name, "step", int(match["step"]), int(match["epoch"]), int(match["step"]))
    if match := STEP.fullmatch(path.name):
        number, stem, epoch = int(match["number"]), match["stem"], 0
        if both := EPOCH.fullmatch(stem):
            stem, epoch = both["stem"], int(both["number"])
        return Told(beside(stem), match["number"], "step", number, epoch, number)
    if match := EPOCH.fullmatch(path.name):
        return Told(beside(match["stem"]), match["number"], "epoch", int(match["number"]), int(match["number"]))
    if match := NUMBERED.fullmatch(path.name):
        return Told(beside(match["stem"]), match["number"], "number", int(match["number"]))
    return Told(str(path), "", "nothing")


def _measured(facts: Mapping[str, str]) -> tuple[int, int, bool]:
    """(epoch, step, whether steps count foremost) by the metadata; 0 for what it does not say."""
    if "training_info" in facts:
        try:
            info = json.loads(facts["training_info"])
            return 0, _whole(info.get("step")), True  # its epoch is the one under way, counted from 0
        except (ValueError, AttributeError, RecursionError):
            pass
    return _whole(facts.get("ss_epoch")), _whole(facts.get("lora_atelier.step")) or _whole(facts.get("ss_steps")), False


def _whole(value: object) -> int:
    return int(str(value)) if re.fullmatch(r"\d{1,12}", str(value), re.ASCII) else 0


def natural(text: str) -> tuple[tuple[bool, int, str], ...]:
    """A key by which ``name-2`` stands before ``name-10``."""
    return tuple(
        (not piece.isdigit(), int(piece) if piece.isdigit() else 0, piece)
        for piece in re.findall(r"[0-9]+|[^0-9]+", text.lower())
    )
