// What the server says in parts, as elements: warnings first, then counts; what is long is folded.
import { make } from "./dom.js";
import { text } from "./text.js";

const SHOWN = 3; // warnings that are not folded

/** A paragraph each. */
export const lines = (sentences, kind = "") => sentences.map((sentence) => make("p", { class: `atelier-note ${kind}` }, sentence));

/** Something with a title that is opened by a click. */
export const folded = (title, ...inside) => make("details", {}, make("summary", {}, title), ...inside);

/** Sentences that want to be looked at; those behind the third are folded. */
export function warned(sentences) {
  const rest = sentences.slice(SHOWN);
  const title = text("moreWarnings", { count: rest.length });
  return [...lines(sentences.slice(0, SHOWN), "atelier-warning"), ...(rest.length ? [folded(title, ...lines(rest, "atelier-warning"))] : [])];
}

/** Sentences of which only their number shows. */
export function noted(sentences) {
  const title = text("notes", { count: sentences.length });
  return sentences.length ? [folded(title, ...lines(sentences))] : [];
}

/** {counts, warnings, notes: sentences; tables: [{title, columns, rows, more}]}, as a node's `ui.told` holds it. */
export function account({ counts = [], warnings = [], notes = [], tables = [] }) {
  const tabled = tables.map((table) => folded(`${table.title} (${table.rows.length + table.more})`, ...tableOf(table)));
  return [...warned(warnings), ...lines(counts), ...noted(notes), ...tabled];
}

function tableOf({ columns, rows, more }) {
  const line = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
  const body = make("table", {}, make("thead", {}, line("th", columns)), make("tbody", {}, ...rows.map((row) => line("td", row))));
  return [body, ...(more ? lines([text("moreRows", { count: more })]) : [])];
}
