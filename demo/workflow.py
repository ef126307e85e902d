"""From the canvas's own file format to the prompt that the server executes. Standard library only.

A workflow file (LiteGraph JSON) keeps a node's settings as a bare list, ``widgets_values``; which value belongs to which input
follows from the order of the node's inputs in the server's ``/object_info``. The canvas does this conversion in the browser.

    prompt = to_prompt(json.loads(path.read_text()), server.object_info(), {("TrainLoRA", "epochs"): 1})
"""

from __future__ import annotations

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
    """{input name: value} of all widgets of a node, linked or not.

    A seed has one value more: what happens to it after generating. So has a node with an upload button, after its required
    widgets.
    """
    stored = node.get("widgets_values") or []
    specs = list(input_specs(info))
    if isinstance(stored, dict):
        return {name: stored[name] for name, kind, options, _ in specs if is_widget(kind, options) and name in stored}
    values, rest, upload = {}, list(stored), False
    for name, kind, options, last_required in specs:
        if str(kind).startswith("COMFY_DYNAMICCOMBO"):
            raise WorkflowError(
                f"node {node['id']} ({node['type']}): its widget {name} changes the others, which is not supported"
            )
        upload = upload or any(options.get(key) for key in UPLOADS)
        if is_widget(kind, options):
            values[name] = rest.pop(0) if rest else default_of(kind, options)
            controlled = options.get("control_after_generate", kind == "INT" and name in SEED_NAMES)
            if controlled and rest and rest[0] in AFTER_GENERATE:
                rest.pop(0)
        if last_required and upload and rest:
            rest.pop(0)
    return values


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
