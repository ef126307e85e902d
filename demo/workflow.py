"""From the canvas's own file format to the prompt that the server executes. Standard library only.

A workflow file (LiteGraph JSON) keeps a node's settings as a bare list, ``widgets_values``; which value belongs to which input
follows from the order of the node's inputs in the server's ``/object_info``. The canvas does this conversion in the browser.

    prompt = to_prompt(json.loads(path.read_text()), server.object_info(), {("TrainLoRA", "epochs"): 1})

A canvas of today also names the widgets, among the node's inputs. By these names ``restored`` puts the values into their places
again after a node has got, lost or moved widgets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
NOT_EXECUTED = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}  # the canvas's own; links run through the last two
MUTED, BYPASSED = 2, 4
SEED_NAMES = {"seed", "noise_seed"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
UPLOADS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")

Overrides = Mapping[tuple[str, str], Any]


class WorkflowError(ValueError):
    """The workflow cannot be queued on this server; the message says which node is why."""


def input_specs(info: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
    """(name, type, options, is the last required one) of a node's inputs, in the order of its widgets."""
    for group in ("required", "optional"):
        specs = info.get("input", {}).get(group) or {}
        order = (info.get("input_order") or {}).get(group) or list(specs)
        for name in order:
            spec = specs[name]
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            yield name, spec[0], options, group == "required" and name == order[-1]


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """A list of choices is V1's combo; ``forceInput`` makes a socket of what would be a widget."""
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput") and not options.get("rawLink")


def default_of(kind: Any, options: dict[str, Any]) -> Any:
    """What a widget holds that an older workflow does not mention; None when only the person can say."""
    choices = kind if isinstance(kind, list) else options.get("options") or []
    return options.get("default", choices[0] if choices else None)


def widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """{input name: value} of all widgets of a node, linked or not."""
    return {name: value for name, value in placed_values(node, info).items() if isinstance(name, str)}


def placed_values(node: dict[str, Any], info: dict[str, Any]) -> dict[Any, Any]:
    """The same by their places; ``(name, "after")`` is what happens to a seed after generating, which is stored behind it.

    A node with an upload button has one value more, after its required widgets.
    """
    stored = node.get("widgets_values") or []
    specs = list(input_specs(info))
    if isinstance(stored, dict):
        return {name: stored[name] for name, kind, options, _ in specs if is_widget(kind, options) and name in stored}
    values: dict[Any, Any] = {}
    rest, upload = list(stored), False
    for name, kind, options, last_required in specs:
        if str(kind).startswith("COMFY_DYNAMICCOMBO"):
            raise WorkflowError(
                f"node {node['id']} ({node['type']}): its widget {name} changes the others, which is not supported"
            )
        upload = upload or any(options.get(key) for key in UPLOADS)
        if is_widget(kind, options):
            values[name] = rest.pop(0) if rest else default_of(kind, options)
            if is_seed(name, kind, options) and rest and rest[0] in AFTER_GENERATE:
                values[name, "after"] = rest.pop(0)
        if last_required and upload and rest:
            rest.pop(0)
    return values


def is_seed(name: str, kind: Any, options: dict[str, Any]) -> bool:
    """Whether one value more is stored behind this widget's: what happens to it after generating."""
    return bool(options.get("control_after_generate", kind == "INT" and name in SEED_NAMES))


def named_values(node: dict[str, Any]) -> dict[Any, Any]:
    """``placed_values`` by the names that the file itself gives.

    Empty for a file that doesn't name all of them: an older canvas only named those to which a link may lead.
    """
    values: dict[Any, Any] = {}
    rest = list(node.get("widgets_values") or [])
    names = [entry["widget"]["name"] for entry in node.get("inputs") or [] if "widget" in entry]
    for name in names:
        if not rest:
            return {}
        values[name] = rest.pop(0)
        if name in SEED_NAMES and rest and rest[0] in AFTER_GENERATE:
            values[name, "after"] = rest.pop(0)
    return values if not rest else {}


def restored(
    workflow: dict[str, Any], object_info: dict[str, Any], presets: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The workflow with every node's values, and their names, in the order in which the server has its widgets now.

    A new widget takes its default, one that is gone takes its value along. A node whose widget ``preset`` names one of
    ``presets`` takes that one's values.
    """
    nodes = []
    for node in workflow["nodes"]:
        if node["type"] in NOT_EXECUTED:
            nodes.append(node)
            continue
        known = named_values(node) or placed_values(node, object_info[node["type"]])
        known |= (presets or {}).get(known.get("preset", ""), {})
        nodes.append(with_widgets(node, known, object_info[node["type"]]))
    slots = {entry["link"]: i for node in nodes for i, entry in enumerate(node["inputs"]) if entry.get("link") is not None}
    links = [[*link[:4], slots[link[0]], *link[5:]] for link in workflow["links"]]
    return {**workflow, "nodes": nodes, "links": links}


def with_widgets(node: dict[str, Any], known: Mapping[Any, Any], info: dict[str, Any]) -> dict[str, Any]:
    """One node of ``restored``: sockets first, then a named entry for each widget, as the canvas stores them."""
    there = {entry["name"]: entry for entry in node.get("inputs") or []}
    sockets: list[dict[str, Any]] = []
    widgets: list[dict[str, Any]] = []
    values: list[Any] = []
    optional = (info.get("input") or {}).get("optional") or {}
    for name, kind, options, _ in input_specs(info):
        new: dict[str, Any] = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind}
        if not is_widget(kind, options):
            sockets.append(there.get(name, {**new, "link": None, **({"shape": 7} if name in optional else {})}))
            continue
        widgets.append(there.get(name, {**new, "widget": {"name": name}, "link": None}))
        values.append(known.get(name, default_of(kind, options)))
        if is_seed(name, kind, options):
            values.append(known.get((name, "after"), "fixed"))
    return {**node, "inputs": sockets + widgets} | ({"widgets_values": values} if values else {})


def to_text(workflow: dict[str, Any]) -> str:
    """The file's text: a line for every node, link and group, so that a change shows where it is."""
    lines = []
    for key, value in workflow.items():
        if isinstance(value, list):
            rows = [json.dumps(row, ensure_ascii=False) for row in value]
            lines.append(f' "{key}": [\n' + ",\n".join(f"  {row}" for row in rows) + "\n ]")
        else:
            lines.append(f' "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


class Graph:
    """Nodes by id and links by id of one workflow, old (lists) or new (objects) style."""

    def __init__(self, workflow: dict[str, Any]):
        if not isinstance(workflow.get("nodes"), list):
            raise WorkflowError('this is no workflow file (it has no "nodes"); an API prompt can be queued as it is')
        subgraphs = {graph["id"] for graph in (workflow.get("definitions") or {}).get("subgraphs", [])}
        self.nodes: dict[str, dict[str, Any]] = {str(node["id"]): node for node in workflow["nodes"]}
        for node in self.nodes.values():
            if node["type"] in subgraphs:
                raise WorkflowError(f"node {node['id']} is a subgraph: unpack it in the canvas first")
        self.links: dict[int, tuple[str, int]] = {}
        for link in workflow.get("links") or []:
            if isinstance(link, dict):
                self.links[link["id"]] = (str(link["origin_id"]), int(link["origin_slot"]))
            else:
                self.links[link[0]] = (str(link[1]), int(link[2]))

    def executed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, node in self.nodes.items():
            if node["type"] not in NOT_EXECUTED and node.get("mode", 0) not in (MUTED, BYPASSED):
                yield key, node

    def source(self, link: int | None) -> tuple[str, int] | None:
        """The executed node and output that a link comes from in the end; None when a muted or missing node cuts it."""
        for _ in range(len(self.nodes) + 1):
            if link is None or link not in self.links:
                return None
            key, slot = self.links[link]
            node = self.nodes.get(key)
            if node is None or node.get("mode", 0) == MUTED:
                return None
            if node["type"] == "Reroute":
                link = (node.get("inputs") or [{}])[0].get("link")
            elif node.get("mode", 0) == BYPASSED:
                link = self.bypass(node, slot)
            else:
                return key, slot
        raise WorkflowError(f"link {link} runs in a circle")

    @staticmethod
    def bypass(node: dict[str, Any], slot: int) -> int | None:
        """The link into a bypassed node that stands in for its output: same place if the type fits, else the first that fits."""
        inputs, kind = node.get("inputs") or [], node["outputs"][slot]["type"]
        for entry in [*inputs[slot : slot + 1], *inputs]:
            if entry.get("link") is not None and (entry["type"] == kind or "*" in (entry["type"], kind)):
                return int(entry["link"])
        return None


def literal(value: Any) -> Any:
    """A widget's value as a prompt holds it: a bare list would be read as a link."""
    return {"__value__": value} if isinstance(value, list) else value


def node_inputs(graph: Graph, node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """A node's entry in the prompt: every widget's value, and a link ``[node id, output]`` where one arrives."""
    inputs = {name: literal(value) for name, value in widget_values(node, info).items()}
    for entry in node.get("inputs") or []:
        source = graph.source(entry.get("link"))
        if source is None:
            continue
        origin = graph.nodes[source[0]]
        primitive = origin["type"] == "PrimitiveNode"
        inputs[entry["name"]] = literal(origin["widgets_values"][0]) if primitive else list(source)
    return inputs


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any], overrides: Overrides | None = None) -> dict[str, Any]:
    """The API prompt: ``{node id: {"class_type", "inputs", "_meta"}}``.

    ``overrides``: ``{(node type or node id, widget): value}``; one that fits no node is an error, since it would be lost.
    """
    graph = Graph(workflow)
    missing = sorted({node["type"] for _, node in graph.executed() if node["type"] not in object_info})
    if missing:
        raise WorkflowError(f"the server does not know the nodes {', '.join(missing)}: is the pack that has them installed?")
    left = dict(overrides or {})
    prompt: dict[str, Any] = {}
    for key, node in graph.executed():
        inputs = node_inputs(graph, node, object_info[node["type"]])
        for (wanted, widget), value in (overrides or {}).items():
            if wanted in (key, node["type"]) and widget in inputs:
                inputs[widget] = literal(value)
                left.pop((wanted, widget), None)
        prompt[key] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title") or object_info[node["type"]].get("display_name") or node["type"]},
        }
    if left:
        raise WorkflowError("no node has the widget " + ", ".join(f"{widget} of {node}" for node, widget in left))
    return prompt
