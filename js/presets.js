// Starting points: a choice in Configure LoRA's list sets the nodes that it stands with, and a panel says what was set. Another
// checkpoint is noticed, and its own starting point offered. All values are the server's; this file only puts them in.
import { app } from "../../scripts/app.js";
import { addPanel, make, root } from "./lib/dom.js";
import { drawsWith, loaderOf, partsOf, trainersOf, valuesOf } from "./lib/graph.js";
import { ask } from "./lib/server.js";
import { setWidgets, summary } from "./lib/starting.js";
import { text } from "./lib/text.js";

const SUITED = "suited to the model";
const OWN = "own settings";
const KEY = "lora_atelier_start"; // among the node's properties, which the workflow keeps
const SUBJECTS = { style: "subjectStyle", person: "subjectPerson", object: "subjectObject" }; // the words for those of the server
const [FRAME, LEAST] = [18, 40]; // pixels around what is said, and of a panel that was not drawn yet
const EVERY = 500; // ms between two looks at the loader
const recipes = fetch(new URL("./presets.json", import.meta.url)).then((answer) => answer.json());

const drawing = (found) => (found?.model ? { file: found.model.file, loras: found.loras } : null);
const ofCells = (node) => (node.comfyClass === "EpochWeightGrid" ? drawing(drawsWith(node, root())) : null);

export class Starting {
  offer = make("p", { class: "atelier-note", role: "status" });
  list = make("details", { class: "atelier-set" });
  notes = make("p", { class: "atelier-note", role: "status" });

  constructor(node) {
    this.node = node;
    this.fresh = true; // until it is known to come from a workflow
    this.preset = this.chooser?.value; // the list's entry, also after another one is chosen, until that has set something
    this.taker = make("button", { type: "button", click: () => this.take() }, "");
    this.undoer = make("button", { type: "button", title: text("takeBackHelp"), click: () => this.takeBack() }, text("takeBack"));
    const row = (button) => make("div", { class: "atelier-row" }, button);
    this.inner = make("div", { class: "atelier-told" }, this.offer, row(this.taker), this.notes, this.list, row(this.undoer));
    this.element = make("div", {}, this.inner);
    this.height = 0;
    this.panel = addPanel(node, "start", this.element, () => this.height, true);
    this.watch = new ResizeObserver(() => this.grow());
    this.watch.observe(this.inner);
    this.show();
  }

  /** As high as what is in it; out of sight nothing has a height. */
  grow() {
    const height = this.element.hidden ? 0 : this.inner.offsetHeight ? this.inner.offsetHeight + FRAME : this.height || LEAST;
    if (height === this.height) return;
    this.height = height;
    this.panel.fit();
  }

  get chooser() {
    return this.node.widgets?.find((widget) => widget.name === "preset");
  }

  loader() {
    const loaders = trainersOf(this.node, root()).map((train) => loaderOf(train, root()));
    return loaders.find(Boolean) ?? null;
  }

  /** What samples are drawn with: {file, loras}. */
  drawn() {
    const found = trainersOf(this.node, root()).map((train) => drawsWith(train, root()));
    return drawing(found.find((one) => one.model));
  }

  /** Looks whether another model is loaded than the settings are for. */
  async look() {
    if (!this.node.graph || document.hidden || this.busy) return;
    const loader = this.loader();
    const seen = JSON.stringify([loader, this.drawn()]);
    if (!loader || seen === this.seen) return;
    this.seen = seen;
    this.busy = true;
    try {
      const found = await ask("family", loader);
      if (this.fresh && this.chooser?.value === SUITED) return await this.start({ preset: SUITED, fresh: true });
      // What an older workflow holds is its maker's; only the next model is another one.
      const kept = this.node.properties?.[KEY];
      this.known ??= kept?.model ?? found.preset;
      const other = found.preset !== this.known;
      const less = kept && found.memory !== kept.memory;
      this.propose(found.family && (other || less) ? found : null, other ? "otherModel" : "otherMemory");
    } catch {
      this.seen = ""; // asked again
    } finally {
      this.busy = false;
    }
  }

  propose(found, why) {
    this.found = found;
    this.offer.textContent = found ? text(why, found) : "";
    this.taker.textContent = found ? text("takeStart", { model: found.preset }) : "";
    this.show();
  }

  show() {
    this.taker.hidden = !this.found;
    const silent = !this.found && !this.notes.textContent && !this.last?.said.length;
    this.element.hidden = silent;
    this.list.hidden = this.undoer.hidden = !this.last?.said.length;
    this.grow();
  }

  take() {
    const subject = this.node.properties?.[KEY]?.subject;
    return this.start({ preset: SUITED, choice: subject ? { subject } : {} });
  }

  /** Asks what is to be set, and sets it. */
  async start(question, preset) {
    const nodes = partsOf(this.node, root());
    this.say(text("asking"));
    try {
      const told = nodes.map((node) => ({ type: node.comfyClass, values: valuesOf(node), drawn: ofCells(node) }));
      const answer = await ask("start", { ...question, loader: this.loader(), drawn: this.drawn(), nodes: told });
      const { changes, notes, model, subject, memory } = answer;
      this.set(nodes.map((node, i) => [node, changes[i]]), [text("startOf", { model, subject: text(SUBJECTS[subject] ?? subject), memory }), ...notes].join(" "), preset);
      this.remember({ model, subject, memory });
      this.fresh = false;
      this.propose(null);
    } catch (error) {
      this.say(error.status ? error.message : text("serverSilent", { why: error.message }));
    }
  }

  /** What the settings are for goes with the workflow. */
  remember(parts) {
    this.node.properties = { ...this.node.properties, [KEY]: parts };
    this.known = parts?.model;
  }

  /** Sets widgets and says which. `changes`: [node, values]. `preset`: the list's entry before, where it was another one. */
  set(changes, sentence, preset = this.chooser?.value) {
    this.before = { parts: this.node.properties?.[KEY], preset, chosen: this.chooser?.value };
    this.last = setWidgets(changes);
    this.rows = summary(this.last.said);
    const rows = this.rows.map(([title, ...parts]) => make("li", {}, make("b", {}, title), ` ${parts.join(", ")}`));
    this.list.replaceChildren(make("summary", {}, text("wasSet", { count: this.last.said.length })), make("ul", {}, ...rows));
    this.say(sentence);
  }

  say(sentence) {
    this.notes.textContent = sentence;
    this.show();
  }

  takeBack() {
    if (!this.last) return;
    const { parts, preset, chosen } = this.before;
    this.last.undo(() => {
      if (this.chooser?.value === chosen) this.chooser.value = this.preset = preset; // what was chosen since stays
    });
    this.last = null;
    this.remember(parts);
    this.say(text("takenBack"));
  }

  async chosen(value) {
    const before = this.preset;
    this.preset = value;
    if (value === OWN) return;
    const recipe = (await recipes)[value];
    if (this.chooser.value !== value) return; // another one was chosen meanwhile
    if (recipe) this.set([[this.node, recipe]], text("recipeSet"), before);
    else await this.start({ preset: value, choice: {} }, before);
  }
}

export const panels = new Map();
setInterval(() => panels.forEach((panel) => panel.look()), EVERY);

app.registerExtension({
  name: "lora-atelier.presets",
  async nodeCreated(node) {
    if (node.comfyClass !== "ConfigureLoRA") return;
    const panel = new Starting(node);
    panels.set(node, panel);
    const chooser = panel.chooser;
    if (chooser) {
      const before = chooser.callback;
      chooser.callback = function (value, ...others) {
        before?.call(this, value, ...others);
        return panel.chosen(value);
      };
    }
    const configured = node.onConfigure;
    node.onConfigure = function (...args) {
      panel.fresh = false; // its values are a workflow's, or those of the node that it was copied from
      const answer = configured?.apply(this, args);
      panel.preset = panel.chooser?.value;
      return answer;
    };
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      panel.watch.disconnect();
      panels.delete(this);
      return removed?.apply(this, args);
    };
  },
});
