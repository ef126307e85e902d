// In the nodes: what they said when they were queued last, what they are at, and their pictures, all within the node. Warnings come
// first, counts always show, and what is long is folded. The sentences are the server's.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { isAnswer } from "./lib/again.js";
import { addPanel, make, root } from "./lib/dom.js";
import { allNodes, nodeAt, outputOf } from "./lib/graph.js";
import { kept, keep } from "./lib/kept.js";
import { pictureOf } from "./lib/server.js";
import { text } from "./lib/text.js";
import { account } from "./lib/told.js";

const NODES = ["LoadDataset", "DatasetFromNodes", "AutoCaption", "RenderRegularisation", "SliderDataset", "EpochWeightGrid"];
const LARGE = ["EpochWeightGrid"]; // their picture is a page that wants to be read
const [LEAST, MOST] = [40, 380]; // heights in pixels; what is longer scrolls

class Panel {
  constructor(node) {
    this.node = node;
    this.status = make("p", { class: "atelier-note atelier-axis", role: "status" });
    this.pictures = make("ul", { class: `atelier-film${LARGE.includes(node.comfyClass) ? " atelier-pages" : ""}`, tabindex: 0, "aria-label": text("nodePictures") });
    this.sentences = make("div", { class: "atelier-told" });
    this.inner = make("div", { class: "atelier-told" }, this.status, this.sentences, this.pictures);
    this.element = make("div", { class: "atelier-scroll atelier-bounded", tabindex: 0, role: "status", "aria-label": text("told"), "data-capture-wheel": "true" }, this.inner);
    this.told = {}; // by who says it: what it said when it ran, and what is checked before
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

  say(told, by) {
    if (JSON.stringify(this.told[by]) === JSON.stringify(told)) return;
    this.told[by] = told;
    const all = Object.values(this.told);
    const part = (name) => all.flatMap((one) => one[name] ?? []);
    const [warnings, counts, notes, tables] = ["warnings", "counts", "notes", "tables"].map(part);
    this.sentences.replaceChildren(...account({ warnings: [...new Set(warnings)], counts, notes, tables }));
    this.ready();
  }

  at(line) {
    this.status.textContent = line;
    this.ready();
  }

  /** `addresses`: [small, large] of each picture; those that are gone from the server leave no frame behind. */
  show(addresses) {
    const pictures = addresses.map(([small, large]) => {
      const image = make("img", { src: small, alt: "", load: () => this.grow(), error: () => item.remove() });
      const item = make("li", {}, make("a", { href: large, target: "_blank", rel: "noopener" }, image));
      return item;
    });
    this.pictures.replaceChildren(...pictures);
    this.ready();
  }

  ready() {
    this.element.hidden = !this.status.textContent && !this.sentences.childElementCount && !this.pictures.childElementCount;
    if (this.element.hidden) this.fit(0);
    this.grow();
  }

  end() {
    this.watch.disconnect();
    URL.revokeObjectURL(this.preview);
  }
}

const panels = new Map();

function panelOf(node) {
  if (!panels.has(node)) panels.set(node, new Panel(node));
  return panels.get(node);
}

/** Shows sentences and tables in a node, beside what others `by` other names show there. No room is taken before there is something
 * to say. */
export function tell(node, told, by = "checked") {
  if (!panels.has(node) && !Object.values(told).some((part) => part.length)) return;
  panelOf(node).say(told, by);
}

/** What a node has put out: its sentences, and its pictures. */
function put(node, { told: [told] = [], images = [], thumbnails = images }) {
  if (told) tell(node, told, "ran");
  if (!thumbnails.length && !panels.has(node)) return;
  const panel = panelOf(node);
  URL.revokeObjectURL(panel.preview);
  panel.at("");
  panel.show(thumbnails.map((picture) => [pictureOf(picture, true), pictureOf(picture)]));
}

/** What the page still knows of a node from when it was executed, by the node's place in the graph. */
function restore(node, outputs) {
  if (!NODES.includes(node.comfyClass)) return;
  const page = outputOf(node, outputs, root());
  const output = page?.told ? page : kept(node);
  if (output) put(node, output);
}

/** The node of ours that an event of the server is about. */
function nodeOf(id) {
  const node = nodeAt(root(), id);
  return [...NODES, "TrainLoRA"].includes(node?.comfyClass) ? node : null;
}

/** What a training is at is a line of its own panel. */
function atTraining(node, line) {
  const place = node.widgets?.find((widget) => widget.name === "run")?.element;
  if (!place || (!line && !place.querySelector(".atelier-at"))) return;
  const status = place.querySelector(".atelier-at") ?? make("p", { class: "atelier-note atelier-axis atelier-at", role: "status" });
  if (!status.isConnected) place.children[0].after(status);
  status.textContent = line;
}

api.addEventListener("lora_atelier.status", ({ detail: { node: id, line } }) => {
  const node = nodeOf(id);
  if (node?.comfyClass === "TrainLoRA") atTraining(node, line);
  else if (node) panelOf(node).at(line);
});

// Where a job ends before its nodes do, nobody takes back what they were at.
for (const event of ["execution_start", "execution_error", "execution_interrupted"]) {
  api.addEventListener(event, () => {
    for (const panel of panels.values()) panel.at("");
    for (const node of allNodes(root())) if (node.comfyClass === "TrainLoRA") atTraining(node, "");
  });
}

// What the host keeps of a node stays what it said when all its pictures were captioned. This is heard before the host hears it.
api.addEventListener("executed", ({ detail }) => {
  if (isAnswer(detail)) delete detail.output.told;
});

// Pictures on the way are shown in the panels, which have a room of their own; drawn by the host they would cover other nodes.
// Nobody of the host's listens before this does.
api.addEventListener("b_preview_with_metadata", (event) => {
  const node = nodeOf(event.detail.displayNodeId ?? event.detail.nodeId);
  if (!node) return;
  event.stopImmediatePropagation();
  if (node.comfyClass === "TrainLoRA") return; // its samples are in its film
  const panel = panelOf(node);
  URL.revokeObjectURL(panel.preview);
  panel.preview = URL.createObjectURL(event.detail.blob);
  panel.show([[panel.preview, panel.preview]]);
});

app.registerExtension({
  name: "lora-atelier.told",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) node.hideOutputImages = true;
  },
  loadedGraphNode(node) {
    restore(node, app.nodeOutputs);
  },
  // Where a tab is come back to, the page gets its outputs only after its nodes.
  onNodeOutputsUpdated(outputs) {
    for (const node of allNodes(root())) restore(node, outputs);
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return;
    nodeType.prototype.onDrawBackground = () => {}; // where the host draws a node's pictures, as large as they come
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output, ...args) {
      const answer = executed?.apply(this, [output, ...args]);
      if (output?.told) put(this, output);
      keep(this, output);
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
