// Sets widgets of several nodes as one step that can be taken back, and tells what has changed.
import { app } from "../../../scripts/app.js";

/** The canvas keeps its own history; a change of ours is one step in it. */
function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

export const titleOf = (node) => node.title || node.comfyClass;

/** `changes`: [node, {widget: value}] pairs. Gives {said: [{node, widget, before, after}], undo()} of what is another value now; what
 * `undo` is given is done in the same step of the canvas' history. */
export function setWidgets(changes) {
  remember();
  const said = [];
  app.graph?.beforeChange?.();
  for (const [node, values] of changes) {
    for (const widget of node.widgets ?? []) {
      if (!(widget.name in values) || widget.value === values[widget.name]) continue;
      said.push({ node, widget, before: widget.value, after: values[widget.name] });
      widget.value = values[widget.name];
    }
    node.setDirtyCanvas?.(true, true);
  }
  app.graph?.afterChange?.();
  remember();
  const undo = (also) => {
    remember();
    also?.();
    for (const { node, widget, before, after } of said) {
      if (widget.value === after) widget.value = before; // what the person has changed since stays
      node.setDirtyCanvas?.(true, true);
    }
    remember();
  };
  return { said, undo };
}

/** What was set, as [title, "widget before → after", ...] for each node. */
export function summary(said) {
  const nodes = new Map();
  const shown = (value) => (value === "" ? "–" : typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value));
  for (const { node, widget, before, after } of said) {
    if (!nodes.has(node)) nodes.set(node, [titleOf(node)]);
    nodes.get(node).push(`${widget.name} ${shown(before)} → ${shown(after)}`);
  }
  return [...nodes.values()];
}
