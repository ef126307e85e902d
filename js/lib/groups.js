// The rarely needed widgets of a node: folded away with the host's own mark, and where the node names groups for them, under a
// heading each that unfolds them. Workflows store values by place, so only what is drawn is in another order.
import { text } from "./text.js";

const OPEN = "atelier groups"; // the property of a node, stored with it, that names the groups which are unfolded
const GAP = 4; // pixels that the classic canvas leaves below a widget
const TITLES = {
  network: "groupNetwork", text: "groupText", optimizer: "groupOptimizer", noise: "groupNoise", loss: "groupLoss", length: "groupLength",
  memory: "groupMemory",
};

const isLinked = (node, widget) => (node.inputs ?? []).some((input) => input.link != null && input.widget?.name === widget.name);

export class Groups {
  /** `specs`: what the server says of the node's inputs, by name. To be made while the node has no panels yet. */
  constructor(node, specs) {
    this.node = node;
    this.specs = specs;
    this.stored = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
    this.folded = this.stored.filter((widget) => specs[widget.name]?.[1]?.advanced);
    for (const widget of this.folded) this.mark(widget, () => !this.isOpen(this.groupOf(widget)));
    const named = new Set(this.folded.map((widget) => this.groupOf(widget)).filter(Boolean));
    this.headings = new Map(Object.keys(TITLES).filter((name) => named.has(name)).map((name) => [name, this.heading(name)]));
    this.arrange();
  }

  groupOf(widget) {
    return this.specs[widget.name]?.[1]?.atelier_group;
  }

  members(name) {
    return this.folded.filter((widget) => this.groupOf(widget) === name);
  }

  get open() {
    return String(this.node.properties?.[OPEN] ?? "").split(" ").filter(Boolean);
  }

  isOpen(name) {
    return !name || this.open.includes(name);
  }

  /** The host draws what is advanced only when asked to; on the classic canvas only what is hidden leaves no gap. A widget that
   * another node gives its value stays, so that the wire ends somewhere. */
  mark(widget, isAway) {
    Object.defineProperty(widget, "advanced", { configurable: true, get: () => !isLinked(this.node, widget), set() {} });
    const hidden = () => !isLinked(this.node, widget) && (!this.node.showAdvanced || isAway());
    Object.defineProperty(widget, "hidden", { configurable: true, get: hidden, set() {} });
    // Older canvases give room to what is hidden: its height and the gap between widgets.
    let own = widget.computeSize;
    Object.defineProperty(widget, "computeSize", { configurable: true, get: () => (hidden() ? () => [0, -GAP] : own), set: (value) => (own = value) });
  }

  heading(name) {
    const button = this.node.addWidget("button", `group_${name}`, null, () => this.toggle(name), { serialize: false });
    button.serialize = false;
    button.options.advanced = true;
    this.mark(button, () => false);
    return button;
  }

  toggle(name) {
    const open = this.open.includes(name) ? this.open.filter((one) => one !== name) : [...this.open, name];
    this.node.properties[OPEN] = open.join(" ");
    this.refit(() => this.arrange());
  }

  /** Puts the widgets into the order that is drawn: what is always there, the groups, then buttons and panels. */
  arrange() {
    if (!this.headings.size || this.loading) return;
    for (const [name, heading] of this.headings) {
      for (const widget of this.members(name)) widget.options.hidden = !this.isOpen(name) && !isLinked(this.node, widget);
      heading.label = this.title(name);
    }
    const grouped = [...this.headings].flatMap(([name, heading]) => [heading, ...this.members(name)]);
    const plain = this.stored.filter((widget) => !grouped.includes(widget));
    this.put([...plain, ...grouped]);
  }

  /** What was changed is told although it is folded away. */
  title(name) {
    const members = this.members(name);
    const changed = members.filter((widget) => widget.value !== this.initial(widget)).length;
    const sign = this.isOpen(name) ? "▾" : "▸";
    return text(changed ? "groupChanged" : "groupTitle", { sign, title: text(TITLES[name]), count: members.length, changed });
  }

  initial(widget) {
    const [kind, options = {}] = this.specs[widget.name];
    return options.default ?? (Array.isArray(kind) ? kind[0] : options.options?.[0]);
  }

  /** While this lasts the widgets stand in the order of their stored values. */
  asStored(act) {
    if (!this.headings.size) return act();
    this.put(this.stored);
    this.loading = true; // wires are told of meanwhile
    try {
      return act();
    } finally {
      this.loading = false;
      this.arrange();
    }
  }

  /** The list is changed in place: the other renderer watches it. */
  put(first) {
    const rest = this.node.widgets.filter((widget) => !first.includes(widget));
    this.node.widgets.splice(0, this.node.widgets.length, ...first, ...rest);
  }

  /** The values in the order in which workflows keep them. */
  values() {
    const more = this.node.widgets.filter((widget) => widget.serialize !== false && !this.stored.includes(widget));
    return [...this.stored, ...more].map(({ value }) => (value && typeof value === "object" ? JSON.parse(JSON.stringify(value)) : (value ?? null)));
  }

  /** As high as before beyond what the widgets need. With Vue nodes the page measures: the node needs no height of its own. */
  refit(act) {
    const { node } = this;
    const spare = window.LiteGraph?.vueNodesMode ? 0 : Math.max(0, node.size[1] - node.computeSize()[1]);
    act();
    node.setSize([node.size[0], node.computeSize()[1] + spare]);
    node.setDirtyCanvas?.(true, true);
  }

  retitle() {
    for (const [name, heading] of this.headings) if (heading.label !== this.title(name)) heading.label = this.title(name);
  }
}
