// Lines in an SVG that stretches with its place; what is written stands beside it in HTML, so that it never stretches.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000;
const HEIGHT = 300;

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** An empty drawing. */
export function plot() {
  return shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "atelier-drawing" });
}

/** How far down a share of the scale is drawn, as a share of the drawing's height. */
export const heightOf = (share) => 1 - (6 + (HEIGHT - 12) * share) / HEIGHT;

/**
 * Draws lines: [{kind, points: [[x, y], ...], low, high, dots, colour}], each between its own `low` and `high`, over x from 0 to
 * `end`; without a `colour` it has that of its kind.
 * `marks`: x of thin vertical lines. `label`: what the drawing shows, for those who cannot see it.
 */
export function draw(svg, lines, end, marks, label) {
  const x = (value) => (WIDTH * value) / Math.max(1e-9, end);
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(...marks.map((at) => shape("line", { x1: x(at), x2: x(at), y1: 0, y2: HEIGHT, class: "atelier-mark" })));
  for (const { kind, points, low, high, dots, colour } of lines) {
    const span = Math.max(1e-12, high - low);
    const y = (value) => HEIGHT * heightOf(Math.min(1.05, Math.max(-0.02, (value - low) / span)));
    const style = colour ? { style: `stroke: ${colour}` } : {};
    const places = points.filter(([, value]) => value != null).map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
    if (!places.length) continue;
    svg.append(shape("polyline", { points: places.join(" "), class: `atelier-line atelier-${kind}`, ...style }));
    // A dot is a line of no length with round ends: a circle would be stretched.
    if (dots) for (const at of places) svg.append(shape("polyline", { points: `${at} ${at}`, class: `atelier-dot atelier-${kind}`, ...style }));
  }
}

/** Round values from `low` to `high`, about `count` of them; on a log scale 1, 2 and 5 times powers of ten, or these alone. */
export function ticks(low, high, count, log = false) {
  if (!(high > low)) return [];
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) for (const digit of [1, 2, 5]) found.push(Number(`${digit}e${power}`));
    const inside = found.filter((value) => value >= low && value <= high);
    const tens = inside.filter((value) => /^1e/.test(value.toExponential()));
    if (inside.length <= 2 * count && inside.length > 1) return inside;
    return tens.length > 1 ? tens : ticks(low, high, count);
  }
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const steps = [10, 5, 2, 1, 0.5, 0.2, 0.1].map((digit) => digit * power);
  const found = steps.slice(steps.findLastIndex((one) => one >= rough)).map((step) => multiples(low, high, step));
  return found.find((values) => values.length > 1) ?? found[0]; // one value alone tells nobody how far it is to the next
}

function multiples(low, high, step) {
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Running mean of rows' losses, of which each step leaves `share`; it begins as the mean of all. Rows may be thinned out. */
export function smoothed(rows, share) {
  let [mean, before] = [0, 0];
  return rows.map(({ step, loss }) => {
    if (loss == null) return [step, null];
    const gap = Math.max(1, step - before);
    before = step;
    mean += Math.max(1 - share ** gap, gap / step) * (loss - mean);
    return [step, mean];
  });
}

/** 1e-4, 0.05, 1: short, with three digits that count. */
export function rateText(rate) {
  if (rate === 0 || rate >= 0.01) return String(Number(rate.toPrecision(3)));
  const [digits, exponent] = rate.toExponential(2).split("e");
  return `${Number(digits)}e${Number(exponent)}`;
}

/** 19 MB, 1.2 GB. */
export function sizeText(bytes) {
  const [unit, name] = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${Number((bytes / unit).toPrecision(bytes / unit >= 10 ? 2 : 1 + (bytes >= 1e9)))} ${name}`;
}

/** 1:02:03 or 2:03; never 0:00, which would be the end. */
export function timeText(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
