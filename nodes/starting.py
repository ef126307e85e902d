"""What a starting point sets in the nodes of a graph, and which one suits the model in a file."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..training import host
from ..training.captioning import CONNECTED
from ..training.config import SubsetConfig
from ..training.dataset.steps_ahead import SubsetSource, steps_per_epoch
from ..training.errors import AtelierError
from ..training.starting import points
from ..training.tensors.safetensors_header import Header

KEPT = frozenset({"preset", "name", "seed", "comment", "start_from", "prompt_syntax", "speed", "sweep"})
"""Widgets of Configure LoRA that no starting point touches."""
LONGEST = 10_000
"""Characters of a text."""
OWN_NODES = ("LoadDataset", "AutoCaption", "ConfigureLoRA", "TrainLoRA", "EpochWeightGrid")
STOCK = {
    "KSampler": ("sampler_name", "scheduler", "steps", "cfg"), "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
}  # fmt: skip
"""Nodes of the host that draw with what was trained, and what they take of the grid's values."""
NODES = (*OWN_NODES, *STOCK)


@dataclass(frozen=True)
class Found:
    """A model in a file, as far as its header tells."""

    kind: str
    family: str | None
    billions: float | None
    file_name: str

    @property
    def note(self) -> str:
        """A sentence on what was found."""
        distilled = (
            " By its name it is distilled for few steps; a LoRA is better trained on the model that it was made from, or with a "
            "training adapter (see the help of Train LoRA)."
            if points.is_distilled(self.file_name)
            else ""
        )
        if self.family is None:
            return "ComfyUI does not know this model's family; careful values for a model that nobody knows were taken."
        if self.kind == points.OTHER:
            return (
                f"The model is of the family {self.family}, which is not listed; the values are those of most models.{distilled}"
            )
        return f"The model is of the family {self.family}: {self.kind}.{distilled}"


def found_in(header: Header, file_name: str) -> Found:
    """Which listed model a file holds."""
    family = host.family_of(header)
    networks = [name for name in header.entries if name.startswith(("model.diffusion_model.", "net."))]
    numbers = 0
    for name in networks or header.entries:
        size = 1
        for side in header.entries[name][1]:
            size *= side
        numbers += size
    billions = numbers / 1e9
    return Found(points.kind_of(family, billions, file_name, "v_pred" in header.entries), family, billions, file_name)


def eight_bit_optimizer() -> bool:
    """Whether AdamW8bit can run here."""
    return host.torch_device().type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None


@cache
def _schema(kind: str) -> Any:
    """The lists of files and folders in it grow old; nothing here looks at them."""
    from .auto_caption import AutoCaption
    from .configure_lora import ConfigureLoRA
    from .epoch_weight_grid import EpochWeightGrid
    from .load_dataset import LoadDataset
    from .train_lora import TrainLoRA

    nodes: dict[str, Any] = {
        "LoadDataset": LoadDataset, "AutoCaption": AutoCaption, "ConfigureLoRA": ConfigureLoRA, "TrainLoRA": TrainLoRA,
        "EpochWeightGrid": EpochWeightGrid,
    }  # fmt: skip
    return nodes[kind].define_schema()


def defaults_of(kind: str) -> dict[str, Any]:
    """The values of a fresh node's widgets."""
    return {entry.id: entry.default for entry in _schema(kind).inputs if getattr(entry, "default", None) is not None}


PERSONAL: Mapping[str, frozenset[str]] = {
    "LoadDataset": frozenset({"folder", "class_caption", "validation_seed"}),
    "AutoCaption": frozenset({"captioner", "trigger", "prefix", "suffix", "hub_id", "download", "dry_run", "device"}),
    "ConfigureLoRA": frozenset({"preset", "name", "comment", "start_from"}),
    "TrainLoRA": frozenset({"when_interrupted", "preview_prompt", "preview_negative", "about", "thumbnail", "keep_state"}),
    "EpochWeightGrid": frozenset({"prompts", "negative", "lora_files", "seed", "more_seeds"}),
}
"""What a preset that is saved does not hold: a person's own words, files and folders."""


def fitting(kind: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(those of these values that the node's widgets take, why the others are none)."""
    widgets = {entry.id: entry for entry in _schema(kind).inputs} if kind in OWN_NODES else {}
    good: dict[str, Any] = {}
    bad: dict[str, str] = {}
    for name, value in values.items():
        entry = widgets.get(name)
        low, high, options = (getattr(entry, key, None) for key in ("min", "max", "options"))
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if entry is None or not hasattr(entry, "default"):
            bad[name] = "is no setting here"
        elif isinstance(options, list):
            if value not in options:
                bad[name] = "is not among what is there to choose from"
        elif isinstance(entry.default, bool) != isinstance(value, bool) or isinstance(entry.default, str) != isinstance(
            value, str
        ):
            bad[name] = "is of another kind than the widget"
        elif number and not ((low is None or value >= low) and (high is None or value <= high)):
            bad[name] = f"is outside {low} to {high}"
        elif isinstance(entry.default, int) and not isinstance(value, (bool, int, str)):
            bad[name] = "is no whole number"
        elif not number and not isinstance(value, (str, bool)):
            bad[name] = "is of another kind than the widget"
        elif isinstance(value, str) and len(value) > LONGEST:
            bad[name] = "is too long"
        if name not in bad:
            good[name] = value
    return good, bad


@dataclass(frozen=True)
class Node:
    """A node of the graph as the canvas shows it."""

    kind: str
    values: Mapping[str, Any]
    source: SubsetSource | None = None
    """Of a Load Dataset node whose folder is there."""
    drawn: tuple[str, ...] = ()
    """Names of the model that a grid draws its cells with, and of the LoRAs on it; nothing where they are not known."""


@dataclass(frozen=True)
class Start:
    """What is set where."""

    changes: tuple[Mapping[str, Any], ...]
    """Widgets and values for each node, in their order."""
    notes: tuple[str, ...]


def start(
    choice: points.Choice,
    found: Found | None,
    nodes: Sequence[Node],
    untouched_only: bool = False,
    drawn: tuple[str, ...] = (),
) -> Start:
    """What a starting point sets in these nodes. ``untouched_only``: nothing that is no longer as in a fresh node; ``drawn``:
    names of the model that samples are drawn with, and of the LoRAs on it; nothing where they are not known."""
    eight = eight_bit_optimizer()
    parts = points.catalogue()
    name = found.file_name if found is not None and found.kind == choice.model else ""
    billions = found.billions if found is not None else None

    def draws(names: tuple[str, ...]) -> tuple[str, ...]:
        """The same without the loader's own file where another model was chosen."""
        own = found is not None and names[:1] == (found.file_name,)
        return (name, *names[1:]) if own or not names else names

    values = points.compose(choice, draws(drawn), eight, billions)
    notes = []
    # A precision, a rank, whatever was set before: nothing stays of another starting point.
    config = {**{k: v for k, v in defaults_of("ConfigureLoRA").items() if k not in KEPT}, **values["ConfigureLoRA"]}
    values = {**values, "ConfigureLoRA": config}
    if parts.memory[choice.memory].eight_bit_optimizer and not eight:
        notes.append("AdamW was taken in place of AdamW8bit, which needs an NVIDIA GPU and the package bitsandbytes.")
    if not points.fitted(parts.models[choice.model], parts.memory[choice.memory]).fits:
        notes.append(f"{choice.model} is not expected to fit into {choice.memory}; this is the most frugal way that there is.")
    values |= {kind: {name: values["EpochWeightGrid"][name] for name in names} for kind, names in STOCK.items()}
    changes = []
    for node in nodes:
        cells = {"EpochWeightGrid": points.compose(choice, draws(node.drawn))["EpochWeightGrid"]} if node.drawn else {}
        changes.append(_for_node(node, values | cells, choice.subject))
    notes += _fit_length(choice.subject, nodes, changes)
    if untouched_only:
        for node, change in zip(nodes, changes, strict=True):
            fresh = defaults_of(node.kind) if node.kind in OWN_NODES else {}
            for widget in [w for w in change if node.values.get(w) != fresh.get(w)]:
                del change[widget]
    return Start(tuple(changes), tuple(notes))


def _for_node(node: Node, values: points.Values, subject: str) -> dict[str, Any]:
    """What is set in one node: of its own widgets only, and nothing that would contradict what stays."""
    change = {widget: value for widget, value in values[node.kind].items() if widget in node.values}
    if node.kind == "LoadDataset":
        if node.values.get("captions") is False:
            for widget in ("shuffle_captions", "caption_dropout", "keep_tokens"):
                change.pop(widget, None)
        if node.values.get("role", "training") != "training":
            for widget in ("repeats", "caption_dropout"):
                change.pop(widget, None)
        step = node.values.get("bucket_step", 64)
        if isinstance(step, int) and step > 0 and values[node.kind]["resolution"] % step:
            change["bucket_step"] = 64
    asked = node.values.get("captioner")
    questions = [part.question for part in points.catalogue().subjects.values()]
    if node.kind == "AutoCaption" and asked == CONNECTED and node.values.get("prompt", "") in ("", *questions):
        change["prompt"] = points.catalogue().subjects[subject].question
    return change


def _fit_length(subject: str, nodes: Sequence[Node], changes: list[dict[str, Any]]) -> list[str]:
    """Fits repeats and epochs to the pictures that are there; returns what has to be said of it."""
    loaders = [i for i, node in enumerate(nodes) if node.kind == "LoadDataset"]
    training = [i for i in loaders if nodes[i].values.get("role", "training") == "training"]
    notes = []
    if len({nodes[i].values.get("resolution") for i in training}) > 1:
        for i in loaders:
            changes[i].pop("resolution", None)
            changes[i].pop("batch_size", None)
        notes.append("Resolution and batch of the datasets were left, since there are several of different sizes.")
    try:
        sources = [_changed(nodes[i].source, changes[i]) for i in training]
        each = steps_per_epoch([one for one in sources if one is not None]) if sources and all(sources) else 0
    except AtelierError as error:
        each = 0
        notes.append(str(error))
    if not each:
        notes.append(f"The repeats are for {points.PICTURES} pictures, since the dataset's own are not known yet.")
        return notes
    repeats, epochs = points.length_for(subject, each)
    for i in training:
        if "repeats" in changes[i]:
            changes[i]["repeats"] = repeats
    for node, change in zip(nodes, changes, strict=True):
        if node.kind == "ConfigureLoRA" and "epochs" in change:
            change["epochs"] = epochs
    return notes


def _changed(source: SubsetSource | None, change: Mapping[str, Any]) -> SubsetSource | None:
    """A dataset as it will be, each picture shown once."""
    if source is None:
        return None
    fields = {field.name for field in dataclasses.fields(SubsetConfig)}
    config = dataclasses.replace(source.config, **{k: v for k, v in change.items() if k in fields} | {"repeats": 1})
    return dataclasses.replace(source, config=config)
