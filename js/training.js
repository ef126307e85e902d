// In Train LoRA: the run while it trains, and any run that ended, from what the server knows of it. A page that was reloaded and a
// second tab ask the same and show the same.
import { app } from "../../scripts/app.js";
import { Chart } from "./lib/chart.js";
import { addPanel, make, root } from "./lib/dom.js";
import { nodeAt, recipeOf } from "./lib/graph.js";
import { momentOf } from "./lib/moment.js";
import { rateText, sizeText, timeText } from "./lib/plot.js";
import { ask, onReconnect, onRun, pictureOf } from "./lib/server.js";
import { sampleKey, strips } from "./lib/strips.js";
import { text } from "./lib/text.js";
import { folded, lines, noted, warned } from "./lib/told.js";
import { addRuns } from "./runs.js";

const OFTEN = 1000; // ms between two questions while a run tells of itself
const SELDOM = 5000; // ms after which it is asked without having been told
const MOST = 4000; // points that are kept; then every second one goes
const [SMALL, LARGE] = [64, 330]; // heights in pixels, without and with a run that has no samples and whose sentences take a line each
const [LINE, CONTROL] = [15, 26]; // pixels of a line of small text, and of one with a list or buttons
const [STRIP, TITLE, STRIPS] = [116, 18, 2]; // pixels of a strip of samples and of its prompt; strips that are seen without scrolling
const ACCOUNT = 220; // pixels that what a run says of itself may take; the rest scrolls
const COMMANDS = ["stop", "save", "sample"];

class Monitor {
  constructor(node) {
    this.node = node;
    this.chosen = ""; // name of a run that the person wants to see; empty: this recipe's
    this.shown = ""; // name of the run whose rows are here
    this.said = 0; // pixels of what the run says of itself
    this.more = 0; // pixels of further lines, and of the samples
    this.filmed = 0;
    this.build();
    this.panel = addPanel(node, "run", this.element, () => (this.shown ? LARGE + this.said + this.more : SMALL));
    this.panel.fit();
    this.clear();
    this.draw();
    this.due = 0;
    this.timer = setInterval(() => this.tick(), 500);
    this.deaf = onRun((status) => this.heard(status));
  }

  build() {
    this.choice = make("select", { "aria-label": text("run"), focus: () => this.list(), change: () => this.choose(this.choice.value) });
    this.choice.append(make("option", { value: "" }, text("own")));
    this.state = make("span", { role: "status" });
    this.bar = make("progress", { max: 1, value: 0, "aria-label": text("progress") });
    this.chart = new Chart();
    this.legend = make("div", { class: "atelier-row atelier-axis atelier-legend" });
    this.facts = make("div", { class: "atelier-row atelier-axis" });
    this.buttons = Object.fromEntries(
      COMMANDS.map((command) => [command, make("button", { type: "button", "aria-label": `${text(command)}. ${text(`${command}Help`)}`, click: () => this.send(command) }, text(command))]),
    );
    this.films = make("div", { class: "atelier-films atelier-scroll", "data-capture-wheel": "true" });
    this.opening = make("p", { class: "atelier-note atelier-axis" });
    this.name = make("b");
    this.inner = make("div", { class: "atelier-told" });
    this.account = make("div", { class: "atelier-scroll atelier-account", "aria-label": text("account"), "data-capture-wheel": "true" }, this.inner);
    this.saving = make("p", { class: "atelier-note atelier-axis" });
    this.watch = new ResizeObserver(() => this.grow());
    this.head = make("div", { class: "atelier-row" }, this.choice, make("span", { class: "atelier-state" }, this.name, this.state));
    this.controls = make("div", { class: "atelier-row" }, ...Object.values(this.buttons));
    this.sentences = [this.opening, this.legend, this.facts, this.saving];
    for (const part of [this.inner, this.head, this.controls, ...this.sentences]) this.watch.observe(part);
    this.body = [
      this.opening, this.account, this.bar, this.legend, this.chart.plot, this.chart.controls, this.facts, this.controls,
      this.saving, this.films,
    ];
    this.empty = make("p", { class: "atelier-note atelier-axis" }, text("empty"));
    this.element = make("div", {}, this.head, this.empty, ...this.body);
  }

  clear() {
    Object.assign(this, { rows: [], measured: [], samples: [], saved: [], live: null, ended: "", opened: "", told: {}, pictures: new Map(), folder: "", total: 0, each: 0, finished: false });
  }

  end() {
    clearInterval(this.timer);
    this.watch.disconnect();
    this.deaf();
  }

  /** Name of the recipe that is connected. */
  get recipe() {
    const widget = recipeOf(this.node, root())?.widgets?.find((found) => found.name === "name");
    return String(widget?.value ?? "").trim();
  }

  tick() {
    if (!this.node.graph || document.hidden) return;
    const wanted = this.chosen || this.recipe;
    if (wanted !== this.wanted) {
      // While a name is typed nobody needs to be asked for every letter.
      if (wanted === this.typed) Object.assign(this, { wanted, due: Date.now() });
      this.typed = wanted;
    }
    if (this.due && Date.now() >= this.due && !this.busy) this.refresh();
  }

  soon(ms) {
    const at = Date.now() + ms;
    if (!this.due || at < this.due) this.due = at;
  }

  heard(status) {
    const mine = status.recipe === this.recipe && nodeAt(root(), status.node) === this.node;
    if (mine) this.own = { recipe: status.recipe, name: status.name };
    if (this.chosen ? status.name !== this.chosen : !mine && status.name !== this.shown) return;
    const ended = ["finished", "cancelled", "failed"].includes(status.phase);
    if (status.name === this.shown) {
      this.live = ended ? null : status;
      this.ended = ended ? status.phase : "";
      this.draw();
    }
    this.soon(ended ? 0 : OFTEN);
  }

  async refresh() {
    this.due = 0;
    if (!this.wanted) return this.show(null);
    this.busy = true;
    const asked = this.wanted;
    try {
      // Which of a recipe's runs this node's is, it says itself; before that, the newest is as good a guess as any.
      const known = this.chosen || (this.own?.recipe === asked && this.own.name);
      const query = new URLSearchParams({ since: this.rows.at(-1)?.step ?? 0, newest: known ? 0 : 1 });
      let found = await ask(`runs/${encodeURIComponent(known || asked)}?${query}`);
      if (!found.name) throw Object.assign(new Error(), { status: 404 });
      const grown = found.name === this.shown && found.last >= (this.rows.at(-1)?.step ?? 0);
      if (!grown) found = await ask(`runs/${encodeURIComponent(found.name)}`);
      if (asked === this.wanted) this.show(found, grown);
    } catch (error) {
      if (asked === this.wanted && error.status) this.show(null);
      else this.soon(SELDOM);
    }
    this.busy = false;
  }

  show(found, grown = false) {
    const before = this.shown;
    if (!grown) this.clear();
    this.shown = found?.name ?? "";
    if (found) {
      this.rows.push(...found.rows);
      while (this.rows.length > MOST) this.rows = this.rows.filter((_, i) => i % 2 === (this.rows.length - 1) % 2);
      Object.assign(this, {
        measured: found.measured, samples: found.samples, saved: found.saved, live: found.live, finished: found.finished,
        failed: found.failed, opened: found.opening, told: found.account, folder: found.folder, total: found.total ?? found.last, each: found.steps_per_epoch ?? 0, last: found.last,
      });
      if (found.live) this.soon(SELDOM);
    }
    this.draw();
    if (!before !== !this.shown) this.panel.fit();
  }

  async list() {
    const { runs, damaged } = await ask("runs").catch(() => ({ runs: [], damaged: {} }));
    const options = ["", ...runs].map((name) => make("option", { value: name, selected: name === this.chosen }, name || text("own")));
    // What cannot be read is shown with the reason, and cannot be chosen.
    const aside = Object.entries(damaged).map(([name, why]) => make("option", { disabled: true, title: why }, `${name}: ${why}`.slice(0, 200)));
    this.choice.replaceChildren(...options, ...aside);
  }

  choose(name) {
    this.chosen = name;
    this.wanted = this.typed = name || this.recipe;
    this.soon(0);
    this.tick();
  }

  async send(command) {
    try {
      this.live = await ask(`runs/${encodeURIComponent(this.shown)}/command`, { command });
    } catch {
      this.soon(0); // it has ended meanwhile
    }
    this.draw();
  }

  draw() {
    const { live, shown } = this;
    for (const part of this.body) part.hidden = !shown;
    this.empty.hidden = Boolean(shown);
    this.state.textContent = this.phase();
    this.name.textContent = shown ? `${shown} · ` : "";
    this.element.dataset.run = shown;
    if (!shown) return;
    const step = live?.step ?? this.last ?? 0;
    this.bar.max = this.total || 1;
    this.bar.value = step;
    this.opening.textContent = live?.opening ?? this.opened ?? "";
    this.drawLines();
    this.tell(step);
    this.drawAccount(step);
    for (const [command, button] of Object.entries(this.buttons)) {
      const asked = Boolean(live?.commands?.includes(command));
      button.disabled = !live || asked || (command === "sample" && !live.samples);
      button.textContent = asked ? `${text(command)} – ${text("wished")}` : text(command);
      button.title = command === "sample" && live && !live.samples ? text("noSamples") : text(`${command}Help`);
    }
    this.drawFilm();
  }

  phase() {
    if (!this.shown) return "";
    if (this.live) return text(this.live.phase);
    const last = this.last ?? 0;
    if (!this.finished && this.failed) return text("failedAt", { step: last, why: this.failed });
    if (this.ended === "failed") return text("failed");
    if (!this.finished) return text("interrupted", { step: last });
    return last < this.total ? text("stoppedAt", { step: last, total: this.total }) : text("finished");
  }

  drawLines() {
    const { rows, measured, total, each, last, shown } = this;
    const now = rows.at(-1);
    const seen = JSON.stringify([shown, rows.length, now?.step, measured.length, total, each, last, this.chart.area.clientHeight > 0]);
    if (seen === this.plotted) return; // a status that brings no row changes nothing here
    this.plotted = seen;
    const loss = now?.smooth?.toPrecision(3) ?? "–"; // a loss that was no number has none
    this.chart.show([{ name: shown, rows, measured, total, each, last }], text("chart", { steps: last ?? 0, loss }));
    const entry = (kind, value) => make("span", { style: `--colour: var(--atelier-${kind})` }, `${text(kind === "loss" ? "smooth" : kind)} ${value}`);
    const fixed = measured.at(-1);
    this.legend.replaceChildren(
      entry("loss", loss),
      ...(fixed?.held_out != null ? [entry("held", fixed.held_out.toPrecision(3))] : []),
      ...(fixed ? [entry("trained", fixed.training?.toPrecision(3) ?? "–")] : []),
      entry("rate", now?.rate != null ? rateText(now.rate) : "–"),
    );
  }

  tell(step) {
    const { live } = this;
    const epochs = live?.epochs ?? (this.each ? Math.ceil(this.total / this.each) : 0);
    const epoch = live?.epoch ?? this.rows.at(-1)?.epoch;
    const pace = live?.steps_per_second;
    const facts = [
      epoch ? text("epoch", { epoch, epochs }) : "",
      text("step", { step, total: this.total }),
      pace ? (pace >= 0.1 ? text("speed", { speed: pace.toFixed(2) }) : text("slow", { speed: (1 / pace).toFixed(1) })) : "",
      pace && step < live.total ? text("left", { time: timeText(live.seconds_left) }) : "",
      live?.memory ? text("memory", { used: sizeText(live.used), total: sizeText(live.memory) }) : "",
    ];
    this.facts.replaceChildren(...facts.filter(Boolean).map((fact) => make("span", {}, fact)));
  }

  /** What the run says of itself; how it is set and what to expect shows by itself only until the first step is done. */
  drawAccount(step) {
    const { warnings = [], counts = [], notes = [], settings = [] } = this.told ?? {};
    const begins = Boolean(this.live) && !step;
    const last = this.saved.at(-1);
    const file = last && `${this.folder}/${last.file}`;
    this.saving.textContent = last ? text("savedFiles", { count: this.saved.length, file, step: last.step }) : "";
    const now = JSON.stringify([this.told, begins, this.shown]);
    if (now === this.drawn) return;
    this.drawn = now;
    const rest = [...lines(begins ? [] : counts), ...noted(notes), ...(settings.length ? [folded(text("settings", { count: settings.length }), ...lines(settings))] : [])];
    this.inner.replaceChildren(...warned(warnings), ...lines(begins ? counts : []), ...(rest.length ? [folded(text("aboutRun"), ...rest)] : []));
    this.grow();
  }

  /** The panel is as high as what is in it, as far as that goes; out of sight nothing has a height. */
  grow() {
    if (!this.panel || !this.element.offsetHeight) return;
    const height = this.inner.offsetHeight ? Math.min(ACCOUNT, this.inner.offsetHeight) : this.said;
    const more = this.room();
    if (height === this.said && more === this.more) return;
    Object.assign(this, { said: height, more });
    this.account.style.height = `${height}px`;
    this.panel.fit();
  }

  /** Pixels that what is written takes beyond a line each. */
  room() {
    const beyond = (parts, line) => parts.reduce((sum, part) => sum + Math.max(0, part.offsetHeight - line), 0);
    return beyond(this.sentences, LINE) + beyond([this.head, this.controls], CONTROL) + this.filmed;
  }

  /** A sample in its strip; one that is shown already stays the same element, so that nothing is loaded twice. */
  picture(sample, prompt) {
    const key = sampleKey(sample);
    const known = this.pictures.get(key);
    if (known) return known;
    const label = momentOf(sample.label);
    const alt = text("sampleOf", { number: sample.number, label });
    const follow = ({ target }) => {
      const strip = target.closest("ul");
      if (strip) strip.scrollLeft = strip.scrollWidth;
    };
    // The server's small pictures stand still, so a film comes as it is.
    const film = sample.film ? { ...sample, filename: sample.film } : null;
    const image = make("img", { src: film ? pictureOf(film) : pictureOf(sample, true), alt, title: prompt, load: follow, loading: film ? "lazy" : "eager" });
    const item = make("li", {}, make("a", { href: pictureOf(film ?? sample), target: "_blank", rel: "noopener" }, image, label));
    this.pictures.set(key, item);
    return item;
  }

  /** One strip of samples a prompt, oldest first; the prompts stand there where there are several. */
  drawFilm() {
    const names = this.samples.map(sampleKey).join();
    if (names === this.strip) return;
    this.strip = names;
    const found = strips(this.samples);
    const parts = found.map(({ number, prompt: told, samples }) => {
      const prompt = told === null ? text("promptNumber", { number }) : told || text("noPrompt");
      const film = make("ul", { class: "atelier-film", tabindex: 0, "aria-label": `${text("samples")}: ${prompt}` });
      film.append(...samples.map((sample) => this.picture(sample, prompt)));
      return [...(found.length > 1 ? [make("p", { class: "atelier-prompt", title: prompt }, prompt)] : []), film];
    });
    this.films.replaceChildren(...parts.flat());
    for (const film of this.films.querySelectorAll(".atelier-film")) film.scrollLeft = film.scrollWidth;
    const title = found.length > 1 ? TITLE : 0;
    this.filmed = Math.min(STRIPS, found.length) * (STRIP + title) + (found.length > STRIPS ? STRIP / 3 : 0);
    this.films.style.height = `${this.filmed}px`;
    this.grow();
  }
}

const monitors = new Map();
onReconnect(() => monitors.forEach((monitor) => monitor.soon(0)));

app.registerExtension({
  name: "lora-atelier.training",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "TrainLoRA") return;
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...args) {
      const answer = created?.apply(this, args);
      addRuns(this, () => monitors.get(this)?.shown);
      monitors.set(this, new Monitor(this));
      return answer;
    };
    const removed = nodeType.prototype.onRemoved;
    nodeType.prototype.onRemoved = function (...args) {
      monitors.get(this)?.end();
      monitors.delete(this);
      return removed?.apply(this, args);
    };
  },
});
