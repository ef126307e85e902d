// Under Configure LoRA: the learning rate's curve, the steps and the file's size, before anything is queued. All numbers are the
// server's; this file only asks for them when something has changed, and draws.
import { app } from "../../scripts/app.js";
import { addPanel, make, root } from "./lib/dom.js";
import { datasetsOf, drawnWith, gridsOf, guidanceOf, loaderOf, lorasOf, textsOf, trainersOf, valuesOf } from "./lib/graph.js";
import { draw, plot, sizeText } from "./lib/plot.js";
import { ask } from "./lib/server.js";
import { text } from "./lib/text.js";
import { warned } from "./lib/told.js";
import { tell } from "./told.js";

const EVERY = 300; // ms between two looks at the widgets; what has not changed since the last look is asked for
const HEIGHT = 150;
const AXES = ["which_epochs", "strengths", "more_seeds", "prompts"]; // of a grid that shows the run: checked as they are typed
const NOT_ASKED = ["preset", "seed", "comment"]; // they change nothing of what is drawn

const NOTHING = { text: "", grids: [] };
const isSame = (a, b) => a.text === b.text && a.grids.length === b.grids.length && a.grids.every((grid, i) => grid === b.grids[i]);

class Outlook {
  constructor(node, names) {
    this.node = node;
    this.names = names.filter((name) => !NOT_ASKED.includes(name));
    this.svg = plot();
    this.top = make("span");
    this.facts = make("div", { class: "atelier-row" });
    this.axis = make("div", { class: "atelier-row atelier-axis" });
    this.bad = make("p", { class: "atelier-note atelier-bad", role: "status" });
    this.warnings = make("div", { class: "atelier-told", role: "status" });
    this.notes = make("p", { class: "atelier-note", role: "status" });
    const drawing = make("div", { class: "atelier-plot" }, this.svg);
    this.element = make("div", {}, this.facts, drawing, this.axis, this.bad, this.warnings, this.notes);
    this.panel = addPanel(node, "outlook", this.element, () => HEIGHT + this.room());
    this.panel.fit();
    this.watch = new ResizeObserver(() => this.warnings.offsetHeight && this.panel.fit());
    this.watch.observe(this.warnings);
    this.seen = this.asked = NOTHING;
    this.number = 0;
    this.told = new Set(); // grids that show a warning of this recipe
  }

  /** Pixels of the sentences below the drawing, by about how many lines they take. */
  room() {
    const lines = (place) => (place.textContent ? Math.max(2, Math.ceil(place.textContent.length / 60)) : 0);
    return 17 * [this.bad, this.notes].reduce((sum, place) => sum + lines(place), 0) + this.warnings.offsetHeight;
  }

  /** What is to be asked, and the grids that its answer is for. */
  question() {
    const values = valuesOf(this.node);
    const widgets = Object.fromEntries(Object.entries(values).filter(([name]) => this.names.includes(name)));
    const [train] = trainersOf(this.node, root());
    if (!train) return { text: JSON.stringify({ widgets, datasets: null, model: null }), grids: [] };
    const { preview_prompt: prompt = "", preview_steps: drawn, preview_frames: frames = 1, preview_width: width = 0, preview_height: height = 0 } = valuesOf(train);
    const found = gridsOf(train, root());
    const grids = found.map((grid) => Object.fromEntries(Object.entries(valuesOf(grid)).filter(([name]) => AXES.includes(name))));
    const samples = drawn ? Math.max(1, prompt.split("\n").filter((line) => line.trim()).length) * frames : 0;
    const texts = textsOf(train, root());
    const film = drawn && frames > 1 ? { frames, width, height } : null;
    const pictures = { samples, film, steps: drawn, guidance: guidanceOf(train), preview: drawnWith(train, root()) };
    const model = loaderOf(train, root());
    const asked = { widgets, datasets: datasetsOf(train, root()), model, loras: lorasOf(train, root()), texts, grids, ...pictures };
    return { text: JSON.stringify(asked), grids: found };
  }

  look() {
    if (!this.node.graph || document.hidden) return;
    const question = this.question();
    const settled = isSame(question, this.seen);
    this.seen = question;
    if (settled && !isSame(question, this.asked)) this.ask(question);
  }

  async ask(question) {
    this.asked = question;
    const number = ++this.number;
    try {
      const answer = await ask("outlook", JSON.parse(question.text));
      if (number !== this.number) return;
      this.tellGrids(question.grids, answer.grids ?? []);
      this.show(answer);
    } catch (error) {
      if (number !== this.number) return;
      this.say(this.bad, error.status ? error.message : text("serverSilent", { why: error.message }));
      if (!error.status) setTimeout(() => (this.asked = NOTHING), 5000);
    }
  }

  say(place, sentence) {
    if (place.textContent === sentence) return;
    place.textContent = sentence;
    this.panel.fit();
  }

  warn(sentences) {
    const now = sentences.join("\n");
    if (now === this.cautions) return;
    this.cautions = now;
    this.warnings.replaceChildren(...warned(sentences));
    this.panel.fit();
  }

  /** Each grid its warnings; those that had some and are no longer behind this recipe are told that there are none. */
  tellGrids(grids, warnings) {
    const now = grids.filter((_, i) => warnings[i]?.length);
    for (const grid of this.told) if (!now.includes(grid)) tell(grid, { warnings: [] });
    now.forEach((grid) => tell(grid, { warnings: warnings[grids.indexOf(grid)] }));
    this.told = new Set(now);
  }

  end() {
    this.watch.disconnect();
    this.number++; // what is still asked has nobody left to be told
    this.tellGrids([], []);
  }

  show({ points, total, known, steps_per_epoch: each, epochs, summary, bytes, memory, activations, notes, warnings = [], sentence }) {
    this.say(this.bad, sentence ?? "");
    this.warn(warnings);
    this.say(this.notes, (notes ?? []).join(" "));
    this.svg.style.opacity = points ? 1 : 0.2;
    if (!points) return;
    const high = Math.max(...points.map(([, rate]) => rate));
    const marks = known && each && epochs <= 100 ? Array.from({ length: epochs - 1 }, (_, i) => (i + 1) * each) : [];
    const line = { kind: "rate", points, low: 0, high: high || 1 };
    draw(this.svg, [line], Math.max(1, total - 1), marks.filter((at) => at < total), text("curve", { summary }));
    const facts = [
      each ? text("steps", { count: each }) : "",
      known ? [text("total", { count: total }), epochs ? text("inEpochs", { count: epochs }) : ""].join(" ").trim() : "",
      bytes ? text("file", { size: sizeText(bytes) }) : "",
      memory ? text(activations ? "memoryNeeded" : "memoryLeast", { size: sizeText(memory + activations) }) : "",
    ];
    this.facts.replaceChildren(...facts.filter(Boolean).map((fact) => make("span", {}, fact)));
    this.facts.title = [known ? "" : text("unknownLength"), memory ? text(activations ? "memoryParts" : "memoryHelp", { base: sizeText(memory), kept: sizeText(activations) }) : ""].filter(Boolean).join(" ");
    if (!known && !bytes) this.facts.replaceChildren(make("span", { class: "atelier-axis" }, text("unknownLength")));
    this.axis.replaceChildren(make("span", {}, known ? "0" : "0 %"), make("span", {}, summary), make("span", {}, known ? String(total) : "100 %"));
    this.svg.dataset.total = known ? total : "";
  }
}

const panels = new Map();
setInterval(() => panels.forEach((panel) => panel.look()), EVERY);

app.registerExtension({
  name: "lora-atelier.recipe",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "ConfigureLoRA") return;
    const names = Object.keys({ ...nodeData.input?.required, ...nodeData.input?.optional });
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...args) {
      const answer = created?.apply(this, args);
      panels.set(this, new Outlook(this, names));
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
