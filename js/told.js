// In the nodes that prepare a dataset: what they said when they were queued last. Warnings come first, counts always show, and
// what is long is folded. The sentences are the server's.
import { app } from "../../scripts/app.js";
import { addPanel, make } from "./lib/dom.js";
import { text } from "./lib/text.js";

const NODES = ["LoadDataset", "DatasetFromNodes", "AutoCaption", "RenderRegularisation"];
const SHOWN = 3; // warnings that are not folded
const [LEAST, MOST] = [40, 420]; // heights in pixels; what is longer scrolls

class Account {
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
    if (!this.inner.offsetHeight || height === this.height) return;
    this.height = height;
    this.panel.fit();
  }

  say({ counts = [], warnings = [], notes = [], tables = [] }) {
    const lines = (sentences, kind) => sentences.map((sentence) => make("p", { class: `atelier-note ${kind}` }, sentence));
    const folded = (title, ...inside) => make("details", {}, make("summary", {}, title), ...inside);
    const rest = warnings.slice(SHOWN);
    this.inner.replaceChildren(
      ...lines(warnings.slice(0, SHOWN), "atelier-warning"),
      ...(rest.length ? [folded(text(rest.length === 1 ? "moreWarning" : "moreWarnings", { count: rest.length }), ...lines(rest, "atelier-warning"))] : []),
      ...lines(counts, ""),
      ...(notes.length ? [folded(text(notes.length === 1 ? "oneNote" : "notes", { count: notes.length }), ...lines(notes, ""))] : []),
      ...tables.map((table) => folded(`${table.title} (${table.rows.length + table.more})`, ...this.table(table))),
    );
    this.grow();
  }

  table({ columns, rows, more }) {
    const line = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
    const body = make("table", {}, make("thead", {}, line("th", columns)), make("tbody", {}, ...rows.map((row) => line("td", row))));
    return more ? [body, make("p", { class: "atelier-note" }, text("moreRows", { count: more }))] : [body];
  }

  end() {
    this.watch.disconnect();
  }
}

app.registerExtension({
  name: "lora-atelier.told",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return;
    const accounts = new Map();
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output, ...args) {
      const answer = executed?.apply(this, [output, ...args]);
      const [told] = output?.told ?? [];
      if (told) {
        if (!accounts.has(this)) accounts.set(this, new Account(this)); // no room is taken before there is something to say
        accounts.get(this).say(told);
      }
      return answer;
    };
    const removed = nodeType.prototype.onRemoved;
    nodeType.prototype.onRemoved = function (...args) {
      accounts.get(this)?.end();
      accounts.delete(this);
      return removed?.apply(this, args);
    };
  },
});
