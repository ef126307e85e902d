// In Auto Caption, while it waits between captioning and training: what was captioned, and the buttons that end the waiting.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel, make, root } from "./lib/dom.js";
import { before, inputOf } from "./lib/graph.js";
import { ask } from "./lib/server.js";
import { text } from "./lib/text.js";
import { account } from "./lib/told.js";
import { nodeOf } from "./lib/waiting.js";

const HEIGHT = 190; // pixels; what is longer scrolls

class Panel {
  constructor(node) {
    this.node = node;
    this.said = make("p", { class: "atelier-note atelier-state" });
    this.rest = make("div", { class: "atelier-told atelier-scroll" });
    const button = (key, act) => make("button", { type: "button", title: text(`${key}Help`), click: () => this.tried(act) }, text(key));
    const buttons = make("div", { class: "atelier-row" }, button("openCaptions", () => this.read()), button("goOn", () => this.goOn()),
      button("endRun", () => api.interrupt()));
    this.element = make("div", { role: "status" }, this.said, this.rest, buttons);
    this.height = HEIGHT;
    this.panel = addPanel(node, "review", this.element, () => this.height);
  }

  async tried(act) {
    try {
      await act();
    } catch (error) {
      this.said.textContent = error.message;
    }
  }

  /** Opens the window of the Load Dataset in front. */
  read() {
    const found = [...before(this.node, [inputOf(this.node, "dataset")].filter(Boolean), root())].find((one) => one.comfyClass === "LoadDataset");
    if (!found) throw new Error(text("noDataset"));
    found.widgets.find((widget) => widget.name === "captions_desk").callback();
  }

  async goOn() {
    await ask("captions/go_on", { node: this.id });
  }

  show(waits) {
    this.id = waits?.node;
    this.element.hidden = !waits;
    if (waits) this.rest.replaceChildren(...account(waits.told));
    if (waits) this.said.textContent = text("waitsForYou");
    const height = waits ? HEIGHT : 0;
    if (height === this.height) return;
    this.height = height;
    this.panel.fit();
  }
}

/** On the page itself, for runs whose workflow isn't the open one. */
class Notice {
  constructor() {
    this.said = make("p", { class: "atelier-note" });
    const button = (key, act) => make("button", { type: "button", title: text(`${key}Help`), click: () => this.tried(act) }, text(key));
    const row = make("div", { class: "atelier-row" }, button("goOn", () => ask("captions/go_on", { node: this.id })), button("endRun", () => api.interrupt()));
    this.element = make("div", { class: "atelier atelier-waits", role: "status" }, this.said, row);
    document.body.append(this.element);
  }

  async tried(act) {
    try {
      await act();
    } catch (error) {
      this.said.textContent = error.message;
    }
  }

  show(waits) {
    this.id = waits?.node;
    this.element.hidden = !waits;
    if (waits) this.said.textContent = [text("waitsElsewhere"), ...(waits.told.counts ?? [])].join(" ");
  }
}

const panels = new Map();
let notice;

async function look() {
  const { waiting } = await ask("captions/waiting").catch(() => ({ waiting: [] }));
  const waits = new Map(waiting.map((one) => [nodeOf(one), one]));
  for (const node of waits.keys()) if (node && !panels.has(node)) panels.set(node, new Panel(node));
  for (const [node, panel] of panels) panel.show(waits.get(node));
  if (waits.has(undefined)) notice ??= new Notice();
  notice?.show(waits.get(undefined));
}

api.addEventListener("lora_atelier.review", look);
api.addEventListener("reconnected", look);

app.registerExtension({
  name: "lora-atelier.review",
  afterConfigureGraph: look,
  nodeCreated(node) {
    if (node.comfyClass !== "AutoCaption") return;
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      panels.delete(node);
      return removed?.apply(this, args);
    };
  },
});
