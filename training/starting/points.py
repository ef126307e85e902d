"""Starting points: what five nodes are set to for a model, a subject and a GPU's memory.

Composed of three parts, ``points.json`` being the data of all three: the model's (resolution, rank, rate, sampler), the
subject's (length, captions) and the memory's (batch, and how a step is made to fit). Where each number comes from stands in
``docs/presets.md``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from ..config.refusal import refuse
from ..errors import AtelierError
from ..families import assistant_word, few_steps_word
from ..files import read_json

FILE = Path(__file__).with_name("points.json")
OTHER = "another model"
"""The part of models that are not listed."""
SUBJECTS = Literal["style", "person", "object"]
PICTURES = 24
"""So many are reckoned with where nobody knows the dataset."""
EPOCHS = 10
GIB = 1.073741824
RESERVED = 0.9
"""GB of a GPU that its driver and what is drawn on the screen take."""
MARGIN = 1.1
"""What is needed times this should be free, as ``performance.memory`` has it too."""
Values = dict[str, dict[str, Any]]
"""Widgets' values by the node's class."""


@dataclass(frozen=True)
class Way:
    """A way to make a step fit."""

    gradient_checkpointing: bool
    base_weights: str
    offload_blocks: float


@dataclass(frozen=True)
class ModelPart:
    """What suits a model."""

    families: tuple[str, ...]
    """The host's names of its family."""
    billions: float
    """Parameters of its network."""
    kept: tuple[float, float]
    """GB that a step keeps of one picture of 1024 x 1024: plainly, and with everything computed twice."""
    side: int
    """Pixels of the square that it is trained at."""
    rank: int
    alpha: float
    learning_rate: float
    words: str
    """How it was captioned: ``tags`` or ``sentences``."""
    sampler: str
    scheduler: str
    steps: int
    cfg: float
    sources: Mapping[str, str]
    """Who has published which of these numbers."""
    own: str = ""
    """What nobody has published."""
    eight: float = 0.53
    """Share of the bf16 weights' memory that they take in eight bits."""
    picture: int = 0
    """Pixels of the samples' side where it is another one than ``side``."""
    named: str = ""
    """Pattern of the file's name, for models that their layers do not tell apart."""
    precision: str = "bf16"
    v_prediction: bool = False
    """A mark in the file tells it, whatever its name."""

    @property
    def drawn(self) -> int:
        """Pixels of the side of samples and cells."""
        return self.picture or self.side

    def needs(self, thrift: Way, side: int, pictures: int, eight_bit_optimizer: bool) -> float:
        """GB of a step on the GPU, about."""
        share = self.eight if thrift.base_weights != "as loaded" else 1.0
        # What is outside of the blocks stays, and so do the blocks that work and that come next.
        stays = 1 - thrift.offload_blocks + (0.14 if thrift.offload_blocks else 0.0)
        kept = self.kept[thrift.gradient_checkpointing] * (side / 1024) ** 2 * pictures
        adapter = 0.018 * self.rank * self.billions**0.6 * (0.65 if eight_bit_optimizer else 1.0)
        return float(2 * self.billions * share * min(1.0, stays) + kept + adapter)


@dataclass(frozen=True)
class SubjectPart:
    """What suits a subject."""

    steps: int
    """Length of the run, about."""
    rank: float
    """Factor on the model's rank."""
    question: str
    """What a captioner that can be asked is asked."""


@dataclass(frozen=True)
class MemoryPart:
    """What a GPU of so much memory can do."""

    gib: float
    eight_bit_optimizer: bool
    batch_size: int
    """At most; one picture where no more fit without moving weights."""
    large: tuple[float, int]
    """(billions, side): models above that size are trained at that side at most."""

    @property
    def usable(self) -> float:
        """GB that a step may need."""
        return (self.gib * GIB - RESERVED) / MARGIN


@dataclass(frozen=True)
class Catalogue:
    """All parts."""

    models: Mapping[str, ModelPart]
    subjects: Mapping[str, SubjectPart]
    memory: Mapping[str, MemoryPart]
    thrift: tuple[Way, ...]
    """From fast to frugal."""
    extras: Mapping[str, Values]
    """Further widgets by subject and by kind of words."""


@dataclass(frozen=True)
class Choice:
    """Which parts."""

    model: str
    subject: str
    memory: str

    def __post_init__(self) -> None:
        parts = catalogue()
        for widget, value, known in (
            ("model", self.model, parts.models), ("subject", self.subject, parts.subjects), ("memory", self.memory, parts.memory),
        ):  # fmt: skip
            refuse(value not in known, f"{widget}: {value!r} is not one of {', '.join(known)}.")


@cache
def catalogue() -> Catalogue:
    """The parts that the pack brings. Raises AtelierError where the file is not what it should be."""
    return read_catalogue(FILE)


def read_catalogue(path: Path) -> Catalogue:
    """The parts in a file, all checked."""
    data = read_json(path, 1 << 20)
    try:
        models = {name: ModelPart(**_tuples(values)) for name, values in data["models"].items()}
        subjects = {name: _subject(values) for name, values in data["subjects"].items()}
        memory = {name: MemoryPart(**_tuples(values)) for name, values in data["memory"].items()}
        thrift = tuple(Way(**values) for values in data["thrift"])
        extras = {
            name: {node: widgets for node, widgets in values.items() if isinstance(widgets, dict)}
            for name, values in {**data["subjects"], **data["words"]}.items()
        }
        for name, model in models.items():
            refuse(model.words not in data["words"], f"{path.name}: {name}: there are no words {model.words!r}.")
            refuse(
                not (0 < model.billions < 1000 and 64 <= model.side <= 4096 and model.side % 64 == 0 and model.rank >= 1),
                f"{path.name}: {name}: a size is out of range.",
            )
            refuse(
                min(*model.kept, model.eight, model.learning_rate, model.steps) <= 0,
                f"{path.name}: {name}: a number is not above 0.",
            )
            re.compile(model.named)
        refuse(set(subjects) != set(get_args(SUBJECTS)), f"{path.name}: subjects: {', '.join(get_args(SUBJECTS))} are needed.")
        refuse(OTHER not in models, f"{path.name}: models: {OTHER!r} is missing.")
    except (KeyError, TypeError, AttributeError, re.error) as error:
        raise AtelierError(f"{path.name}: this is no list of starting points ({error}).") from error
    return Catalogue(models, subjects, memory, thrift, extras)


def _subject(values: Mapping[str, Any]) -> SubjectPart:
    return SubjectPart(values["steps"], values["rank"], values["question"])


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def kind_of(family: str | None, billions: float | None, file_name: str, v_prediction: bool = False) -> str:
    """Which listed model a file holds: by family first, then by a mark or its name, then by its size; ``OTHER`` if none."""
    models = catalogue().models
    found = {name: part for name, part in models.items() if family in part.families}
    marked = [name for name, part in found.items() if part.v_prediction and v_prediction]
    named = [name for name, part in found.items() if part.named and re.search(part.named, file_name, re.IGNORECASE)]
    # The longest match says most: noobaiXL_vPred is of both kinds.
    named.sort(key=lambda name: not found[name].v_prediction)
    plain = [name for name, part in found.items() if not part.named]
    if billions and plain:
        plain.sort(key=lambda name: abs(math.log(found[name].billions / billions)))
    return next(iter([*marked, *named, *plain]), OTHER)


def memory_named(gib: float) -> str:
    """The largest of the listed memories that a GPU of so many GiB has; the smallest where it has less."""
    parts = catalogue().memory
    fitting = [name for name, part in parts.items() if part.gib <= gib * 1.04]  # a card of 24 tells 23.6
    return max(fitting, key=lambda name: parts[name].gib) if fitting else min(parts, key=lambda name: parts[name].gib)


@dataclass(frozen=True)
class Fit:
    """A way to make a step fit."""

    side: int
    batch_size: int
    thrift: Way
    fits: bool
    """Whether it is expected to; if not, it is the most frugal way that there is."""


def fitted(model: ModelPart, memory: MemoryPart) -> Fit:
    """The fastest way in which a step of ``model`` fits."""
    ways = catalogue().thrift
    side = min(model.side, memory.large[1]) if model.billions > memory.large[0] else model.side
    sizes = [side, *(smaller for smaller in (768, 512) if smaller < side)]
    for batch in (memory.batch_size, 1):
        for way in ways:
            moves = way.offload_blocks > 0 or way.base_weights != "as loaded"
            if batch > 1 and moves:
                continue
            if model.needs(way, side, batch, memory.eight_bit_optimizer) <= memory.usable:
                return Fit(side, batch, way, True)
    for smaller in sizes[1:]:
        if model.needs(ways[-1], smaller, 1, memory.eight_bit_optimizer) <= memory.usable:
            return Fit(smaller, 1, ways[-1], True)
    return Fit(sizes[-1], 1, ways[-1], False)


def compose(choice: Choice, drawn: Sequence[str] = (), eight_bit_optimizer: bool = True, billions: float | None = None) -> Values:
    """The widgets' values of all five nodes, by the node's class; repeats are for ``PICTURES``.

    ``drawn``, the names of the model that draws and of the LoRAs on it, tell whether it is distilled;
    ``eight_bit_optimizer``: whether this computer has one; ``billions``: of the model at hand, for one that is not listed.
    """
    parts = catalogue()
    model, subject, memory = parts.models[choice.model], parts.subjects[choice.subject], parts.memory[choice.memory]
    if billions and choice.model == OTHER:
        model = replace(model, billions=billions)
    fit = fitted(model, memory)
    rank = max(4, round(model.rank * subject.rank))
    distilled = any(is_distilled(name) for name in drawn if not assistant_word(name))
    sampling = {"steps": 8, "cfg": 1.0} if distilled else {"steps": model.steps, "cfg": model.cfg}
    extras: Values = {}
    for part in (model.words, choice.subject):
        for node, widgets in parts.extras.get(part, {}).items():
            extras[node] = {**extras.get(node, {}), **widgets}
    side, repeats = model.drawn, repeats_for(subject.steps, PICTURES / fit.batch_size)
    return {
        "LoadDataset": {
            "resolution": fit.side, "batch_size": fit.batch_size, "repeats": repeats, "buckets": True,
            **extras.get("LoadDataset", {}),
        },
        "AutoCaption": extras.get("AutoCaption", {}),
        "ConfigureLoRA": {
            "rank": rank, "alpha": float(max(1, round(model.alpha * rank / model.rank))), "targets": "attention + feed-forward",
            "learning_rate": model.learning_rate,
            "optimizer": "AdamW8bit" if memory.eight_bit_optimizer and eight_bit_optimizer else "AdamW",
            "schedule": "cosine", "epochs": EPOCHS, "max_steps": 0, "save_every": 1, "precision": model.precision,
            "save_precision": "fp16" if model.precision == "auto" else "bf16", **asdict(fit.thrift),
        },
        "TrainLoRA": {
            "preview_steps": sampling["steps"], "preview_cfg": sampling["cfg"], "preview_sampler": model.sampler,
            "preview_scheduler": model.scheduler, "preview_width": side, "preview_height": side,
        },
        "EpochWeightGrid": {
            "sampler_name": model.sampler, "scheduler": model.scheduler, "steps": sampling["steps"], "cfg": sampling["cfg"],
            "width": side, "height": side,
        },
    }  # fmt: skip


def is_distilled(file_name: str) -> bool:
    """Whether a file's name says that the model was distilled for few steps."""
    return bool(few_steps_word(file_name))


def repeats_for(steps: float, steps_of_one: float) -> int:
    """The repeats with which ``EPOCHS`` epochs come nearest to ``steps``; ``steps_of_one``: of an epoch in which each picture is
    shown once."""
    return max(1, math.floor(steps / (EPOCHS * steps_of_one) + 0.5)) if steps_of_one > 0 else 1


def length_for(subject: str, steps_of_one: Sequence[float] | float) -> tuple[int, int]:
    """(repeats, epochs) for a dataset: where one epoch is more than a tenth of the run, there are fewer of them."""
    each = sum(steps_of_one) if isinstance(steps_of_one, Sequence) else steps_of_one
    steps = catalogue().subjects[subject].steps
    if each * EPOCHS >= steps:
        return 1, max(1, round(steps / each))
    return repeats_for(steps, each), EPOCHS
