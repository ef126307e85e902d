// Which captions are shown: by a part of a tag that is typed, by a tag of the list with its count, or those without any. It asks
// nobody: what is on the page is what counts, saved or not.
import { make } from "./dom.js";
import { text } from "./text.js";

const MOST = 300; // tags in the list; the rest is found by typing

const COMMAS = ",，、､،";
const SMILES = ":;=8"; // a round bracket behind one of these may be a mouth

/** What stands between the commas, as the training parts captions (parts() in training/dataset/words.py): a comma within a pair of
 * round brackets parts nothing, and a pair of two mouths holds nothing together. */
export function parts(caption) {
  const isMouth = (at) => at > 0 && SMILES.includes(caption[at - 1]);
  const [opened, commas, inside, cuts] = [[], [], new Set(), []];
  for (let at = 0; at < caption.length; at++) {
    if (COMMAS.includes(caption[at])) {
      commas.push(at);
      cuts.push(at);
    } else if (caption[at] === "(") {
      opened.push(at);
    } else if (caption[at] === ")" && opened.length) {
      const start = opened.pop();
      if (!(isMouth(start) && isMouth(at))) while (commas.at(-1) > start) inside.add(commas.pop());
    }
  }
  const ends = [...cuts.filter((at) => !inside.has(at)), caption.length];
  return ends.map((end, i) => caption.slice(i ? ends[i - 1] + 1 : 0, end).trim()).filter(Boolean);
}

/** The tags of a caption, each once; its lines are captions of their own. */
export const tagsOf = (caption) => [...new Set(caption.split("\n").flatMap(parts))];

/** [tag, pictures], the most frequent first. */
export function counted(captions) {
  const counts = new Map();
  for (const tag of captions.flatMap(tagsOf)) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  return [...counts].sort(([a, m], [b, n]) => n - m || a.localeCompare(b));
}

/** Whether a caption has tags in which each of the parts that are typed between commas occurs; upper and lower case are one. */
export function matches(caption, typed) {
  const tags = tagsOf(caption).map((tag) => tag.toLowerCase());
  return tagsOf(typed.toLowerCase()).every((part) => tags.some((tag) => tag.includes(part)));
}

/** Whether taking a step back would change anything of what the rows (picture -> {words}) show. */
const isEmpty = (step, rows) => Boolean(step.captions) && [...step.captions].every(([picture, caption]) => rows.get(picture)?.words.value === (caption ?? ""));

/** Takes the steps from the end of a history that would change nothing; a step that was saved always does. */
export function dropEmpty(past, rows) {
  while (past.length && isEmpty(past.at(-1), rows)) past.pop();
}

export class CaptionFilter {
  /** `rows()`: picture -> {item, words}. `say(sentence)`: called when what is shown has changed. */
  constructor(rows, say) {
    this.rows = rows;
    this.say = say;
    this.entries = new Map(); // tag -> its button
    this.exact = null; // the tag of the list that is chosen; "" for those without caption
    this.field = make("input", { type: "search", placeholder: text("onlyTagHint"), title: text("onlyTag"), "aria-label": text("onlyTag"), input: () => this.narrow() });
    this.list = make("div", { class: "atelier-tags", role: "group", "aria-label": text("tagList") });
  }

  shows(caption) {
    const chosen = this.exact === null || (this.exact ? tagsOf(caption).includes(this.exact) : !caption.trim());
    return chosen && matches(caption, this.field.value);
  }

  narrow() {
    const rows = [...this.rows().values()];
    for (const row of rows) row.item.hidden = !this.shows(row.words.value);
    this.draw();
    this.say(text("shownCount", { count: rows.filter((row) => !row.item.hidden).length, all: rows.length }));
  }

  choose(tag) {
    this.exact = this.exact === tag ? null : tag;
    this.narrow();
  }

  /** The list, as the captions are now; to be called whenever they may have changed. */
  draw() {
    const captions = [...this.rows().values()].map((row) => row.words.value);
    const without = captions.filter((caption) => !caption.trim()).length;
    const all = counted(captions);
    const tags = all.slice(0, MOST);
    const chosen = this.exact && !tags.some(([tag]) => tag === this.exact) ? [[this.exact, new Map(all).get(this.exact) ?? 0]] : [];
    const entries = [...(without || this.exact === "" ? [["", without]] : []), ...chosen, ...tags]; // what is chosen can be released
    const now = JSON.stringify([entries, all.length]);
    if (now !== this.drawn) this.fill(entries, all.length - tags.length);
    this.drawn = now;
    for (const [tag, button] of this.entries) button.setAttribute("aria-pressed", String(this.exact === tag));
  }

  /** Draws the list anew; the keyboard and the scrolling stay where they are. */
  fill(entries, more) {
    const [at] = [...this.entries].find(([, button]) => button === document.activeElement) ?? [];
    const down = this.list.scrollTop;
    const entry = ([tag, count]) => make("button", { type: "button", click: () => this.choose(tag) }, `${tag || text("withoutCaption")} (${count})`);
    this.entries = new Map(entries.map((one) => [one[0], entry(one)]));
    const note = more > 0 ? [make("p", { class: "atelier-note atelier-axis" }, text("moreTags", { count: more }))] : [];
    this.list.replaceChildren(...this.entries.values(), ...note);
    this.list.scrollTop = down;
    if (at !== undefined) (this.entries.get(at) ?? this.field).focus();
  }
}
