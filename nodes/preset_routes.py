"""What the canvas asks about starting points: which model is loaded, and what would be set, what a file says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..training import host
from ..training.config import SubsetConfig, check_run_name
from ..training.dataset.steps_ahead import SubsetSource
from ..training.errors import AtelierError
from ..training.starting import imported, points
from ..training.tensors.safetensors_header import read_header
from .configure_lora import KINDS, WIDGETS, build
from .folders import index_of, named
from .presets import ALIASES, SUITED, subject_of
from .starting import KEPT, NODES, PERSONAL, Found, Node, defaults_of, fitting, found_in, start

GIB = 1 << 30
MOST_NODES = 64
MOST_WIDGETS = 200
MOST_LORAS = 256
"""Names that are looked at."""


def loaded(values: Mapping[str, Any]) -> tuple[Found | None, str]:
    """(the model in a loader's file, a sentence on it); None where there is no loader or no file that can be read."""
    if "file" not in values:
        return None, "No loader was found in front of Train LoRA's model; connect this node and a loader, and choose again."
    try:
        widget, file = _text(values, "widget"), _text(values, "file")
        found = found_in(read_header(host.model_file(widget, file)), file)
    except AtelierError as error:
        return None, str(error)
    return found, found.note


def family(values: Mapping[str, Any]) -> dict[str, Any]:
    """Which model a loader's file holds, and what is there to choose from; ``note`` says it in a sentence."""
    found, note = loaded(values)
    parts = points.catalogue()
    return {
        "family": found.family if found else None,
        "preset": found.kind if found else points.OTHER,
        "note": note if found else f"{note} Values that suit most models were taken.",
        "memory": points.memory_named(host.memory()[1] / GIB),
        "models": list(parts.models),
        "subjects": list(parts.subjects),
        "memories": list(parts.memory),
    }


def starting(values: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry of the preset list, or a choice of the three parts, sets in the nodes of a graph.

    ``nodes``: {"type", "values"} each; ``changes`` are in their order.
    """
    found, note = loaded(_object(values, "loader"))
    preset, wanted = values.get("preset"), _object(values, "choice")
    named_model = preset if isinstance(preset, str) and not preset.startswith(SUITED) else wanted.get("model")
    model = ALIASES.get(str(named_model), named_model) if named_model else (found.kind if found else points.OTHER)
    subject = wanted.get("subject") or (subject_of(preset) if isinstance(preset, str) else "style")
    memory = wanted.get("memory") or points.memory_named(host.memory()[1] / GIB)
    choice = points.Choice(str(model), str(subject), str(memory))
    nodes = _nodes(values.get("nodes"))
    made = start(choice, found, nodes, values.get("fresh") is True, _drawn(values))
    notes = list(made.notes) if named_model else [note, *made.notes]
    if named_model and found is not None and found.kind != choice.model:
        notes.insert(0, f"These are the values of {choice.model}, and the loader's model is {found.kind}.")
    parts = {"model": choice.model, "subject": choice.subject, "memory": choice.memory}
    return {"changes": [dict(change) for change in made.changes], "notes": notes, **parts}


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of another trainer, a LoRA's metadata or an own preset says, as widgets' values.

    ``reset`` are the values of a fresh node that stand in for what a file leaves open, so that nothing stays of an earlier
    recipe; ``lost`` is what has no counterpart here; ``warning`` says what the values contradict each other in.
    """
    text, name = values.get("text"), values.get("name", "")
    if not isinstance(text, str) or not isinstance(name, str):
        raise AtelierError("text: the contents of a file are needed.")
    read = imported.read(text, name[:200])
    lost = [{"setting": one.setting, "value": one.value, "why": one.why} for one in read.lost]
    nodes: dict[str, dict[str, Any]] = {}
    given = {kind: dict(widgets) for kind, widgets in read.nodes.items()}
    if read.recipe:
        given["ConfigureLoRA"] = {**given.get("ConfigureLoRA", {}), **_widgets_of(read.recipe)}
        lost = []  # a recipe of ours is whole
    for kind, widgets in given.items():
        if read.own:
            widgets = {widget: value for widget, value in widgets.items() if widget not in PERSONAL.get(kind, ())}
        nodes[kind], bad = fitting(kind, widgets)
        lost += [{"setting": widget, "value": str(widgets[widget])[:200], "why": why} for widget, why in bad.items()]
    warning = ""
    try:
        build(**{**defaults_of("ConfigureLoRA"), **nodes.get("ConfigureLoRA", {})})
    except AtelierError as error:
        warning = str(error)
    set_here = {kind: values for kind, values in nodes.items() if values}
    reset: dict[str, dict[str, Any]] = {}
    if not read.own and "ConfigureLoRA" in set_here:
        fresh = defaults_of("ConfigureLoRA")
        reset["ConfigureLoRA"] = {k: v for k, v in fresh.items() if k not in KEPT | set_here["ConfigureLoRA"].keys()}
    return {"origin": read.origin, "nodes": set_here, "reset": reset, "lost": lost, "warning": warning}


def _widgets_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The widgets' values of a recipe that this pack has written into a LoRA."""
    out = {name: value for name, value in recipe.items() if name not in {*KINDS, "varied"}}
    for widget, (part, field) in WIDGETS.items():
        values = recipe.get(part)
        if isinstance(values, dict) and field in values and widget != "start_from":
            out[widget] = values[field]
    return out


def preset_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a file that keeps the nodes' present values as a preset, without what is personal."""
    name = check_run_name(_text(values, "name"))
    kept: dict[str, dict[str, Any]] = {}
    for node in _nodes(values.get("nodes")):
        if node.kind in PERSONAL and node.kind not in kept:
            good, _ = fitting(node.kind, {k: v for k, v in node.values.items() if k not in PERSONAL[node.kind]})
            kept[node.kind] = good
    return {"file": f"{name}.json", "text": json.dumps({imported.OWN: 1, "name": name, "nodes": kept}, indent=1)}


def _text(values: Mapping[str, Any], field: str) -> str:
    value = values.get(field)
    if not isinstance(value, str) or not 0 < len(value) <= 1000 or not value.isprintable():
        raise AtelierError(f"{field}: a text of at most 1000 characters is needed.")
    return value


def _object(values: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = values.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AtelierError(f"{field}: an object is needed.")
    return value


def _nodes(values: Any) -> list[Node]:
    if not isinstance(values, list) or len(values) > MOST_NODES or not all(isinstance(value, dict) for value in values):
        raise AtelierError(f"nodes: a list of at most {MOST_NODES} objects is needed.")
    nodes = []
    for value in values:
        kind, widgets = value.get("type"), value.get("values")
        if kind not in NODES or not isinstance(widgets, dict) or len(widgets) > MOST_WIDGETS:
            raise AtelierError(f"nodes: each needs a type, one of {', '.join(NODES)}, and the values of its widgets.")
        plain = {name: value for name, value in widgets.items() if isinstance(value, (str, bool, int, float))}
        nodes.append(Node(kind, plain, _source(plain) if kind == "LoadDataset" else None, _drawn(value)))
    return nodes


def _drawn(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a model that draws, and of the LoRAs on it; nothing where they are not told."""
    drawn = _object(values, "drawn")
    loras = drawn.get("loras") or []
    if not isinstance(loras, list) or not all(isinstance(lora, str) and len(lora) <= 1000 for lora in loras):
        raise AtelierError("drawn: loras: a list of names is needed.")
    return (_text(drawn, "file"), *loras[:MOST_LORAS]) if drawn else ()


def _source(widgets: Mapping[str, Any]) -> SubsetSource | None:
    """The dataset of a Load Dataset node; None where its folder or its widgets are not what they should be yet."""
    known = {f.name: widgets[f.name] for f in fields(SubsetConfig) if f.name in widgets}
    try:
        config = SubsetConfig(**known)
        folder, root = named(config.folder)
    except (AtelierError, TypeError, ValueError, OSError):
        return None
    return SubsetSource(config, folder, root, index_of(folder))
