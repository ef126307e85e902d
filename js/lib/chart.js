// Chart of one or several runs: axes with values, what is under the pointer or the arrow keys, smoothing, and a log scale.
import { make } from "./dom.js";
import { draw, heightOf, plot, rateText, smoothed, ticks } from "./plot.js";
import { text } from "./text.js";

const LEVELS = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998]; // share of the mean before that a step leaves
const USUAL = 5; // the server's own smoothing, taken over every step
const KEPT = "lora-atelier.chart";
const COLOURS = ["#d9742b", "#3b8fd4", "#3fa35c", "#a678d8", "#d14b72", "#b8a02c", "#2fa8a0", "#8a8f98"];

/** The colour of the `number`-th of several runs. */
export const colourOf = (number) => COLOURS[number % COLOURS.length];

const known = (points) => points.map(([, value]) => value).filter((value) => value != null);
const short = (value) => rateText(Math.abs(value) < 1e-12 ? 0 : value);

function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    return {}; // no storage, or not ours
  }
}

export class Chart {
  /** `several`: whether runs are compared; then each has a colour, and the rates are left out. */
  constructor(several = false) {
    this.several = several;
    this.runs = [];
    this.build();
    this.recall();
  }

  build() {
    this.svg = plot();
    this.left = make("div", { class: "atelier-values" });
    this.right = make("div", { class: "atelier-values atelier-rates" });
    this.below = make("div", { class: "atelier-steps" });
    this.cursor = make("div", { class: "atelier-cursor", hidden: true });
    this.tip = make("div", { class: "atelier-tip", role: "status", hidden: true });
    this.area = make(
      "div", {
        class: "atelier-area", tabindex: 0, "aria-label": text("chartHelp"), pointermove: (event) => this.point(event), pointerleave: () => this.look(null),
        keydown: (event) => this.walk(event), blur: () => this.look(null),
      }, this.svg, this.cursor, this.tip,
    );
    this.plot = make("div", { class: "atelier-plot atelier-chart" }, this.left, this.area, this.right, this.below);
    this.slider = make("input", { type: "range", min: 0, max: LEVELS.length - 1, step: 1, input: () => this.set() });
    this.log = make("input", { type: "checkbox", change: () => this.set() });
    this.level = make("span");
    this.controls = make("div", { class: "atelier-row atelier-axis atelier-scales" }, make("label", {}, this.level, this.slider), make("label", {}, this.log, text("logScale")));
    // What is pressed and dragged here is not meant for the canvas, which would take the node along.
    for (const type of ["pointerdown", "mousedown"]) this.controls.addEventListener(type, (event) => event.stopPropagation());
  }

  recall() {
    const { level = USUAL, log = false } = kept();
    this.slider.value = level in LEVELS ? level : USUAL;
    this.log.checked = log === true;
    this.tell();
  }

  tell() {
    this.level.textContent = text("smoothing", { share: LEVELS[this.slider.value] });
    this.slider.setAttribute("aria-valuetext", this.level.textContent);
  }

  set() {
    try {
      localStorage.setItem(KEPT, JSON.stringify({ level: Number(this.slider.value), log: this.log.checked }));
    } catch {
      // without room it is not remembered
    }
    this.tell();
    this.draw();
  }

  /** Shows runs: [{name, rows, measured, total, each, last}]. */
  show(runs, label) {
    Object.assign(this, { runs, label });
    this.draw();
  }

  smooth(run) {
    const level = Number(this.slider.value);
    return level === USUAL ? run.rows.map((row) => [row.step, row.smooth]) : smoothed(run.rows, LEVELS[level]);
  }

  draw() {
    const parts = this.runs.map((run, number) => {
      const [raw, rate] = ["loss", "rate"].map((kind) => run.rows.map((row) => [row.step, row[kind]]));
      const [held, trained] = ["held_out", "training"].map((kind) => run.measured.map((row) => [row.step, row[kind]]));
      return { run, raw, rate, held, trained, smooth: this.smooth(run), colour: this.several ? colourOf(number) : undefined };
    });
    const scale = this.scale(parts);
    const ends = this.runs.map((run) => Math.max(1, Math.min(run.total || Infinity, Math.max(10, 1.1 * (run.last ?? 0)))));
    this.end = ends.reduce((a, b) => Math.max(a, b), 1);
    const rates = this.several ? [] : parts.flatMap((part) => known(part.rate));
    const top = 1.05 * rates.reduce((a, b) => Math.max(a, b), 0);
    const of = (points) => points.map(([at, value]) => [at, value == null ? null : scale.of(value)]);
    const lines = parts.flatMap(({ raw, smooth, rate, held, trained, colour }) => [
      ...(this.several ? [] : [{ kind: "rate", points: rate, low: 0, high: top || 1 }, { kind: "raw", points: of(raw), low: 0, high: 1 }]),
      { kind: "smooth", points: of(smooth), low: 0, high: 1, colour },
      ...(this.several ? [] : [{ kind: "trained", points: of(trained), dots: true, low: 0, high: 1 }]),
      { kind: "held", points: of(held), dots: true, low: 0, high: 1, colour },
    ]);
    const each = this.several ? 0 : (this.runs[0]?.each ?? 0);
    const epochs = each ? Math.floor(this.end / each) : 0;
    const marks = epochs <= 100 ? Array.from({ length: epochs }, (_, i) => (i + 1) * each).filter((at) => at < this.end) : [];
    draw(this.svg, lines, this.end, marks, this.label ?? "");
    Object.assign(this, { parts });
    this.axes(scale, top);
    if (this.at != null) this.look(this.at);
  }

  /** From where to where the losses go, and the place of one between (0 to 1). Single spikes leave the drawing. */
  scale(parts) {
    const raw = this.several ? [] : parts.flatMap((part) => known(part.raw)).sort((a, b) => a - b);
    const share = (at) => raw[Math.floor(at * (raw.length - 1))];
    const others = parts.flatMap((part) => [...known(part.smooth), ...known(part.held), ...(this.several ? [] : known(part.trained))]);
    const all = [...others, ...(raw.length ? [share(0.03), share(0.97)] : [])];
    const most = all.reduce((a, b) => Math.max(a, b), 0) || 1;
    const least = all.reduce((a, b) => Math.min(a, b), most);
    if (this.log.checked) {
      const positive = all.filter((value) => value > 0).reduce((a, b) => Math.min(a, b), most);
      const [low, high] = [positive / 1.1, most * 1.1];
      const span = Math.log(high / low);
      return { low, high, log: true, of: (value) => (value > 0 ? Math.log(value / low) / span : null) };
    }
    const high = most + 0.08 * (least > 0.5 * most ? most - least || most : most);
    const low = least > 0.5 * most ? Math.max(0, least - 0.15 * (high - least)) : Math.min(0, least);
    return { low, high, log: false, of: (value) => (value - low) / (high - low) };
  }

  axes(scale, top) {
    const room = this.area.clientHeight || 80;
    const count = Math.max(1, Math.min(6, Math.floor(room / 28)));
    const at = (value, share) => make("span", { style: `top: ${(100 * heightOf(share)).toFixed(2)}%` }, value);
    const there = this.runs.some((run) => run.rows.length || run.measured.length);
    this.left.replaceChildren(...(there ? ticks(scale.low, scale.high, count, scale.log).map((value) => at(short(value), scale.of(value))) : []));
    this.right.replaceChildren(...(top ? ticks(0, top, count).map((value) => at(short(value), value / top)) : []));
    this.right.hidden = !top;
    const steps = ticks(0, this.end, Math.max(2, Math.min(8, Math.floor((this.area.clientWidth || 300) / 55)))).filter(Number.isInteger);
    this.below.replaceChildren(...steps.map((step) => make("span", { style: `left: ${((100 * step) / this.end).toFixed(2)}%` }, step >= 10000 ? `${step / 1000}k` : step)));
  }

  point(event) {
    const box = this.area.getBoundingClientRect();
    if (box.width) this.look(((event.clientX - box.left) / box.width) * this.end);
  }

  /** Arrow keys walk from row to row. */
  walk(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const rows = this.runs[0]?.rows ?? [];
    if (!by || !rows.length) return;
    event.preventDefault();
    event.stopPropagation();
    const now = this.at == null ? (by > 0 ? -1 : rows.length) : nearest(rows, this.at);
    this.look(rows[Math.max(0, Math.min(rows.length - 1, now + by * Math.max(1, Math.round(rows.length / 200))))].step);
  }

  /** What there is at a step; null: nothing is looked at. */
  look(at) {
    this.at = at;
    const lead = this.parts?.map(({ run }) => run.rows[nearest(run.rows, at ?? 0)]).filter(Boolean) ?? [];
    this.cursor.hidden = this.tip.hidden = at == null || !lead.length;
    if (this.tip.hidden) return;
    const step = lead.reduce((best, row) => (Math.abs(row.step - at) < Math.abs(best.step - at) ? row : best)).step;
    const share = step / this.end;
    this.cursor.style.left = `${100 * share}%`;
    this.tip.classList.toggle("atelier-behind", share < 0.5);
    this.tip.replaceChildren(...this.words(step).map((line) => make("div", {}, ...line)));
  }

  /** Lines of what is known at a step. */
  words(step) {
    const lines = [[text("stepAt", { step })]];
    for (const { run, smooth, colour } of this.parts) {
      const place = nearest(run.rows, step);
      const row = run.rows[place];
      if (!row || (this.several && Math.abs(row.step - step) > Math.max(2, this.end / 100))) continue;
      const mean = smooth[place][1]?.toPrecision(4) ?? "–";
      const validation = run.measured[nearest(run.measured, step)];
      const near = validation && Math.abs(validation.step - step) <= Math.max(1, this.end / 60);
      const held = near && validation.held_out != null ? [text("heldAt", { loss: validation.held_out.toPrecision(4), step: validation.step })] : [];
      if (this.several) {
        lines.push([make("i", { style: `background: ${colour}` }), `${run.name}: ${mean}`, ...(held.length ? [` · ${held[0]}`] : [])]);
      } else {
        lines[0] = [text("epochAt", { step: row.step, epoch: row.epoch ?? "–" })];
        lines.push([text("lossAt", { loss: row.loss?.toPrecision(4) ?? "–", mean })]);
        if (row.rate != null) lines.push([text("rateAt", { rate: rateText(row.rate) })]);
        if (near && validation.training != null) lines.push([text("trainedAt", { loss: validation.training.toPrecision(4), step: validation.step })]);
        if (held.length) lines.push(held);
      }
    }
    return lines;
  }
}

/** The place of the row whose step is nearest. */
function nearest(rows, step) {
  let [low, high] = [0, rows.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].step < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - rows[low - 1].step < rows[low].step - step ? low - 1 : low;
}
