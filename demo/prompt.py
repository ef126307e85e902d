"""API prompts: out of a workflow file of either format, with other values in widgets, and which nodes of them are to be run.

Standard library only.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .workflow import WorkflowError, input_specs, is_widget, literal, to_prompt

TRAINS = "TrainLoRA"
ENDS = (TRAINS, "EpochWeightGrid")
WRITERS = ("AutoCaption", "RenderRegularisation")
"""What writes beside the pictures, and hands its ``dataset`` on as its first output."""
TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Prompt = dict[str, Any]
Setting = tuple[str, str, str]
"""(type, id or title of the node, widget, text of its value)."""


def setting_of(text: str) -> Setting:
    """``Node.widget=value``; a title may have points in it."""
    place, equals, value = text.partition("=")
    node, point, widget = place.rpartition(".")
    if not (equals and point and node.strip() and widget.strip()):
        raise WorkflowError(f"--set {text}: write Node.widget=value, as in --set ConfigureLoRA.rank=16")
    return node.strip(), widget.strip(), value


def read(path: Path) -> dict[str, Any]:
    """A workflow file's content; WorkflowError naming the file where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkflowError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"{path} is no JSON: {error}") from error
    if isinstance(found, dict) and (isinstance(found.get("nodes"), list) or _is_prompt(found)):
        return found
    if isinstance(found, dict) and isinstance(found.get("prompt"), dict) and _is_prompt(found["prompt"]):
        inner: dict[str, Any] = found["prompt"]  # as it is sent to /prompt
        return inner
    raise WorkflowError(f"{path} is no workflow: save one in the canvas (Workflow > Save, or Export (API))")


def _is_prompt(found: dict[str, Any]) -> bool:
    return bool(found) and all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
        for node in found.values()
    )


def prompt_of(found: dict[str, Any], info: dict[str, Any]) -> Prompt:
    """``found``: as ``read`` gives it. ``info``: the server's ``/object_info``."""
    if isinstance(found.get("nodes"), list):
        return to_prompt(found, info)
    missing = sorted({node["class_type"] for node in found.values() if node["class_type"] not in info})
    if missing:
        raise WorkflowError(f"the server does not know the nodes {', '.join(missing)}: is the pack that has them installed?")
    return found


def assigned(prompt: Prompt, info: dict[str, Any], settings: Iterable[Sequence[str]]) -> Prompt:
    """The prompt with other values in widgets; what was linked into one is cut off."""
    prompt = {key: {**node, "inputs": dict(node["inputs"])} for key, node in prompt.items()}
    for wanted, widget, text in settings:
        titled = [key for key, node in prompt.items() if (node.get("_meta") or {}).get("title") == wanted]
        keys = [key for key, node in prompt.items() if wanted in (key, node["class_type"])] or titled
        if not keys:
            there = ", ".join(sorted({node["class_type"] for node in prompt.values()}))
            raise WorkflowError(f"--set {wanted}.{widget}: the workflow has no node of that type, id or title; it has {there}")
        for key in keys:
            kind = prompt[key]["class_type"]
            widgets = {
                name: (spec, options) for name, spec, options, _ in input_specs(info[kind]) if is_widget(spec, options)
            }  # fmt: skip
            if widget not in widgets:
                near = difflib.get_close_matches(widget, widgets, 5, 0.5)
                raise WorkflowError(
                    f"--set {wanted}.{widget}: {kind} has no such widget. {'Near to it: ' if near else 'It has '}"
                    f"{', '.join(near or sorted(widgets))}"
                )
            prompt[key]["inputs"][widget] = literal(_value(f"--set {wanted}.{widget}={text}", text, widgets[widget][0]))
    return prompt


def _value(said: str, text: str, kind: Any) -> Any:
    """A widget's value out of its text; whether it is one of its choices and within its limits is for the server to say."""
    try:
        if kind == "INT":
            return int(text)
        if kind == "FLOAT":
            return float(text)
        if kind == "BOOLEAN":
            return TRUTHS[text.strip().lower()]
    except (ValueError, KeyError):
        wanted = {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}[kind]
        raise WorkflowError(f"{said}: this widget holds {wanted}") from None
    return text


def followed(prompt: Prompt, wanted: list[str] | None) -> tuple[Prompt, list[str]]:
    """The prompt, and its ends, of a process that takes part in the training of another one, which writes captions and draws.

    WorkflowError for what several processes cannot do in one go.
    """
    replaced = {key: node["inputs"].get("dataset") for key, node in prompt.items() if node["class_type"] in WRITERS}

    def source(value: Any) -> Any:
        while isinstance(value, list) and len(value) == 2 and str(value[0]) in replaced and value[1] == 0:
            value = replaced[str(value[0])]
        return value

    found = {key: {**node, "inputs": {n: source(v) for n, v in node["inputs"].items()}} for key, node in prompt.items()}
    trains = [key for key in wanted or found if found[key]["class_type"] == TRAINS]

    def before(key: str) -> list[str]:
        values = found[key]["inputs"].values()
        return [str(value[0]) for value in values if isinstance(value, list) and len(value) == 2 and str(value[0]) in found]

    needed, waiting = set[str](), [one for key in trains for one in before(key)]
    while waiting:
        key = waiting.pop()
        if key not in needed:
            needed.add(key)
            waiting += before(key)
    if chained := sorted(needed & {*trains}):
        raise WorkflowError(
            f"--processes: what Train LoRA (node {chained[0]}) has learnt goes into another Train LoRA, and only the first "
            "process has that. Mute the second one, run it, then train the second from the first one's file"
        )
    left = sorted({prompt[key]["class_type"] for key in needed & replaced.keys()})
    if left or any(value is None for key in trains for value in found[key]["inputs"].values()):
        raise WorkflowError(
            f"--processes: {', '.join(left) or 'what writes captions'} hands on more than its dataset. Run it once with one "
            "process, and load its folder with Load Dataset"
        )
    return found, trains


def targets(prompt: Prompt, everything: bool) -> list[str] | None:
    """The nodes up to which the prompt is run: trainings and grids, or None for all. WorkflowError where nothing is trained."""
    found = [key for key, node in prompt.items() if node["class_type"] in ENDS]
    if not any(prompt[key]["class_type"] == TRAINS for key in found):
        raise WorkflowError(
            "the workflow has no Train LoRA (Atelier) node that is neither muted nor bypassed, so it trains nothing"
        )
    waiting = [key for key, node in prompt.items() if node["class_type"] == "AutoCaption" and node["inputs"].get("pause")]
    if waiting:
        raise WorkflowError(
            f"AutoCaption (node {waiting[0]}) waits for somebody who reads the captions. Add --set AutoCaption.pause=false"
        )
    return None if everything else found
