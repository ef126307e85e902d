// In the nodes that prepare a dataset: what they said when they were queued last. Warnings come first, counts always show, and
// what is long is folded. The sentences are the server's.
import { app } from "../../scripts/app.js";
import { addPanel, make, root } from "./lib/dom.js";
import { allNodes } from "./lib/graph.js";
import { text } from "./lib/text.js";
import { account } from "./lib/told.js";

const NODES = ["LoadDataset", "DatasetFromNodes", "AutoCaption", "RenderRegularisation", "EpochWeightGrid"];
const [LEAST, MOST] = [40, 420]; // heights in pixels; what is longer scrolls

class Panel {
  constructor(node) {
    this.inner = make("div", { class: "atelier-told" });
    this.element = make("div", { class: "atelier-scroll", tabindex: 0, role: "status", "aria-label": text("told"), "data-capture-wheel": "true" }, this.inner);
    this.height = LEAST;
    this.panel = addPanel(node, "told", this.element, () => this.height);
    this.watch = new ResizeObserver(() => this.grow());
    this.watch.observe(this.inner);
  }

  /** As high as what is in it, as far as that goes; a node that is out of sight has no height and keeps its own. */
  grow() {
    const height = Math.min(MOST, Math.max(LEAST, this.inner.offsetHeight + 18));
    if (this.inner.offsetHeight) this.fit(height);
  }

  fit(height) {
    if (height === this.height) return;
    this.height = height;
    this.panel.fit();
  }

  say(told) {
    this.inner.replaceChildren(...account(told));
    this.element.hidden = !this.inner.childElementCount;
    if (this.element.hidden) this.fit(0);
    this.grow();
  }

  end() {
    this.watch.disconnect();
  }
}

const panels = new Map();

/** Shows sentences and tables in a node. No room is taken before there is something to say. */
export function tell(node, told) {
  const known = panels.get(node);
  const now = JSON.stringify(told);
  if (known ? known.now === now : !Object.values(told).some((part) => part.length)) return;
  if (!known) panels.set(node, new Panel(node));
  panels.get(node).say(told);
  panels.get(node).now = now;
}

/** What the page still knows of a node from when it was executed, by the node's place in the graph. */
function restore(node, outputs) {
  if (!NODES.includes(node.comfyClass)) return;
  const inside = node.graph && node.graph !== root();
  const [told] = outputs?.[inside ? `${node.graph.id}:${node.id}` : node.id]?.told ?? [];
  if (told) tell(node, told);
}

app.registerExtension({
  name: "lora-atelier.told",
  loadedGraphNode(node) {
    restore(node, app.nodeOutputs);
  },
  // Where a tab is come back to, the page gets its outputs only after its nodes.
  onNodeOutputsUpdated(outputs) {
    for (const node of allNodes(root())) restore(node, outputs);
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output, ...args) {
      const answer = executed?.apply(this, [output, ...args]);
      const [told] = output?.told ?? [];
      if (told) tell(this, told);
      return answer;
    };
    const removed = nodeType.prototype.onRemoved;
    nodeType.prototype.onRemoved = function (...args) {
      panels.get(this)?.end();
      panels.delete(this);
      return removed?.apply(this, args);
    };
  },
});
