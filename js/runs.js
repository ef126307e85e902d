// "Runs" on Train LoRA: every run with what it takes on the disk, their curves in one chart, a download, their folders, and the
// deletion of what is not wanted any more.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Chart, colourOf } from "./lib/chart.js";
import { Dialog } from "./lib/dialog.js";
import { make } from "./lib/dom.js";
import { rateText, sizeText } from "./lib/plot.js";
import { ask } from "./lib/server.js";
import { language, text } from "./lib/text.js";

const MOST = 8; // curves in one chart: so many colours can be told apart
// [word of a choice, what the server is sent, word of the question before]
const WHATS = [["deleteState", "state", "deleteStateAsk"], ["deleteRecords", "records", "deleteRecordsAsk"], ["deleteAll", "all", "deleteAllAsk"]];
const PLACES = [["folderLoras", "loras"], ["folderRun", "run"]];
const sum = (sizes) => Object.values(sizes).reduce((a, b) => a + b, 0);

/** What each choice of deletion would free, in bytes. */
const freed = ({ sizes }, what) => (what === "state" ? sizes.state : what === "all" ? sum(sizes) : sum(sizes) - sizes.loras);

const COLUMNS = new Map([
  ["runName", (run) => run.name.toLowerCase()],
  ["runDate", (run) => -run.written],
  ["runSteps", (run) => -run.step],
  ["runFamily", (run) => run.family],
  ["runLoss", (run) => run.loss ?? Infinity],
  ["runSize", (run) => -sum(run.sizes)],
]);

const DOWN = new Set(["runDate", "runSteps", "runSize"]); // the largest first

class Runs extends Dialog {
  /** `name`: the run to begin with. */
  constructor(name) {
    super();
    Object.assign(this, { runs: [], name, compared: name ? [name] : [], rows: new Map(), by: "runDate" });
    this.build();
    this.tried(() => this.load());
  }

  build() {
    const select = (label, change = () => this.ready()) => make("select", { "aria-label": text(label), title: text(label), change });
    this.table = make("table", { class: "atelier-runs" });
    this.chart = new Chart(true);
    this.legend = make("div", { class: "atelier-row atelier-axis atelier-legend" });
    this.about = make("div", { class: "atelier-told" });
    this.path = make("input", { type: "text", readonly: true, "aria-label": text("folderPath"), hidden: true, focus: () => this.path.select() });
    this.file = select("runFile");
    this.get = this.button("download", () => this.download());
    this.place = select("whichFolder");
    this.place.append(...PLACES.map(([key, value]) => make("option", { value }, text(key))));
    this.show = this.button("openFolder", () => this.open_());
    this.what = select("whatToDelete");
    this.gone = this.button("deleteRun", () => this.remove());
    const side = make("div", { class: "atelier-compared" }, this.legend, this.chart.plot, this.chart.controls, this.about);
    const list = make("div", { class: "atelier-scroll", tabindex: 0, "aria-label": text("runsTitle") }, this.table);
    const body = make("div", { class: "atelier-runs-body" }, list, side);
    const row = make("div", { class: "atelier-row" }, this.file, this.get, this.place, this.show, this.what, this.gone);
    this.open(text("runsTitle"), [], make("div", { class: "atelier-runs-all" }, body, row, this.path), []);
    this.watch = new ResizeObserver(() => this.chart.draw());
    this.watch.observe(this.chart.area);
  }

  async load() {
    const { runs } = await ask("catalogue");
    this.runs = runs;
    if (!this.current()) this.name = runs[0]?.name;
    this.compared = this.compared.filter((name) => runs.some((run) => run.name === name));
    if (!this.compared.length && this.current() && !this.current().why) this.compared = [this.name];
    this.said.textContent = runs.length ? text("runsCount", { count: runs.length, size: sizeText(runs.reduce((all, run) => all + sum(run.sizes), 0)) }) : text("noRuns");
    this.fill();
    await this.compare();
  }

  current() {
    return this.runs.find((run) => run.name === this.name);
  }

  state({ why, live, finished, failed, step, total, state }) {
    if (why) return why;
    if (live) return text("runLive");
    if (finished) return step < (total ?? step) ? text("stoppedAt", { step, total }) : text("finished");
    if (failed) return text("failedAt", { step, why: failed });
    return text(state ? "runInterrupted" : "runBeginsAgain");
  }

  fill() {
    const rank = COLUMNS.get(this.by);
    const sorted = [...this.runs].sort((a, b) => (rank(a) < rank(b) ? -1 : Number(rank(a) > rank(b))));
    const sort = (key) => () => {
      this.by = key;
      this.fill();
    };
    const heads = [...COLUMNS.keys()].map((key) =>
      make("th", { scope: "col", "aria-sort": key !== this.by ? "none" : DOWN.has(key) ? "descending" : "ascending" }, make("button", { type: "button", title: text("sortBy"), click: sort(key) }, text(key))),
    );
    const compare = make("th", { scope: "col" }, text("compareCurves"));
    this.table.replaceChildren(make("thead", {}, make("tr", {}, compare, ...heads)), make("tbody", {}, ...sorted.map((run) => this.line(run))));
    this.mark();
  }

  line(run) {
    const { name, why, step, total, family, loss, written, sizes } = run;
    const box = make("input", { type: "checkbox", disabled: Boolean(why), "aria-label": text("compareRun", { name }), change: () => this.tried(() => this.toggle(name, box.checked)) });
    box.checked = this.compared.includes(name);
    const choose = make("button", { type: "button", click: () => this.choose(name) }, name);
    const state = make("div", { class: `atelier-axis${why || run.failed ? " atelier-bad" : ""}` }, this.state(run));
    const date = new Date(1000 * written).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });
    const size = make("td", { title: text("sizesOf", Object.fromEntries(Object.entries(sizes).map(([part, bytes]) => [part, sizeText(bytes)]))) }, sizeText(sum(sizes)));
    const cells = [date, why ? "–" : `${step}${total && total !== step ? ` / ${total}` : ""}`, family || "–", loss == null ? "–" : loss.toPrecision(3)];
    return make("tr", { "data-run-name": name, click: (event) => event.target.closest("input, button") || this.choose(name) },
      make("td", {}, box), make("th", { scope: "row" }, choose, state), ...cells.map((cell) => make("td", {}, cell)), size);
  }

  mark() {
    for (const row of this.table.querySelectorAll("tr[data-run-name]")) row.setAttribute("aria-selected", String(row.dataset.runName === this.name));
  }

  choose(name) {
    this.name = name;
    this.mark();
    this.ready();
  }

  async toggle(name, on) {
    this.compared = on ? [...this.compared, name] : this.compared.filter((other) => other !== name);
    if (this.compared.length > MOST) {
      this.compared.shift();
      this.said.textContent = text("mostCurves", { most: MOST });
      this.fill();
    }
    await this.compare();
  }

  /** The curves of the runs that are ticked. */
  async compare() {
    const wanted = [...this.compared];
    const runs = await Promise.all(wanted.map((name) => ask(`runs/${encodeURIComponent(name)}`).catch(() => null)));
    if (wanted.join("\n") !== this.compared.join("\n")) return; // another answer is on its way
    const shown = wanted.map((name, i) => ({ name, rows: [], measured: [], ...runs[i] }));
    this.chart.show(shown, text("compared", { count: shown.length }));
    this.legend.replaceChildren(...shown.map(({ name, rows }, number) => make("span", { style: `--colour: ${colourOf(number)}` }, `${name} ${rows.at(-1)?.smooth != null ? rateText(rows.at(-1).smooth) : "–"}`)));
  }

  ready() {
    const run = this.current();
    for (const control of [this.place, this.show]) control.disabled = !run || Boolean(run.why);
    const file = this.file.value;
    const files = [...(run?.files ?? [])].reverse();
    this.file.replaceChildren(...files.map((one) => make("option", { value: one.file }, `${one.file} (${sizeText(one.bytes)})`)));
    if (files.some((one) => one.file === file)) this.file.value = file;
    for (const control of [this.file, this.get]) control.disabled = !files.length;
    const what = run?.name === this.told && this.what.value ? this.what.value : "state"; // with every run the least is offered first
    const choices = WHATS.map(([key, value]) => make("option", { value, disabled: value === "state" && !run?.state }, text(key, { size: sizeText(run ? freed(run, value) : 0) })));
    this.what.replaceChildren(...choices);
    this.what.value = what === "state" && !run?.state ? "records" : what;
    for (const control of [this.what, this.gone]) control.disabled = !run || run.live;
    if (run?.name !== this.told) {
      this.told = run?.name;
      this.path.hidden = true;
    }
    const going = run && !run.why ? text(run.state ? "canGoOn" : "cannotGoOn") : "";
    this.about.replaceChildren(...(run ? [make("p", { class: "atelier-note atelier-axis" }, make("b", {}, run.name), ` · ${this.state(run)}`), make("p", { class: "atelier-note atelier-axis" }, going)] : []));
  }

  download() {
    const address = api.apiURL(`/lora_atelier/runs/${encodeURIComponent(this.name)}/file?${new URLSearchParams({ file: this.file.value })}`);
    make("a", { href: address, download: this.file.value }).click();
    this.said.textContent = text("downloading", { file: this.file.value });
  }

  /** Opens the folder where the server and the person are at one computer; else its path stands there to be copied. */
  async open_() {
    const { path, opened } = await ask(`runs/${encodeURIComponent(this.name)}/folder`, { which: this.place.value });
    this.path.value = path;
    this.path.hidden = false;
    this.said.textContent = text(opened ? "folderOpened" : "folderNamed");
    if (!opened) this.path.select();
  }

  async remove() {
    const run = this.current();
    const what = this.what.value;
    const question = text(WHATS.find(([, value]) => value === what)[2], { name: run.name, size: sizeText(freed(run, what)) });
    const unfinished = run.finished || run.why ? "" : ` ${text(what === "state" ? "deleteUnfinishedState" : "deleteUnfinished", { step: run.step })}`;
    if (!confirm(question + unfinished)) return;
    const { bytes, left } = await ask(`runs/${encodeURIComponent(run.name)}/delete`, { what });
    await this.load();
    await app.refreshComboInNodes?.(); // no loader lists what is gone
    const rest = left.length ? ` ${text("deleteLeft", { files: left.join(", ") })}` : "";
    this.said.textContent = text("deletedRun", { name: run.name, size: sizeText(bytes) }) + rest;
  }

  close(event) {
    super.close(event);
    this.watch.disconnect();
  }
}

/** Puts the button of the window on a node; `name()`: the run that the node shows. */
export function addRuns(node, name) {
  const button = node.addWidget("button", "runs_desk", null, () => new Runs(name()), { serialize: false });
  button.label = text("openRuns");
  button.serialize = false;
}
