// Which captions are shown: by a part of a tag that is typed, by a tag of the list with its count, or those without any. It asks
// nobody: what is on the page is what counts, saved or not.
import { make } from "./dom.js";
import { text } from "./text.js";

const MOST = 300; // tags in the list; the rest is found by typing

export const tagsOf = (caption) => [...new Set(caption.split(/[,\n]/).map((tag) => tag.trim()).filter(Boolean))];

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
    this.exact = null; // the tag of the list that is chosen; "" for those without caption
    this.field = make("input", { type: "search", placeholder: text("onlyTag"), "aria-label": text("onlyTag"), input: () => this.narrow() });
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
    const tags = counted(captions);
    const now = JSON.stringify([without, tags, this.exact]);
    if (now === this.drawn) return;
    this.drawn = now;
    const entry = (tag, label, count) => make("button", { type: "button", "aria-pressed": String(this.exact === tag), click: () => this.choose(tag) }, `${label} (${count})`);
    const more = tags.length > MOST ? [make("p", { class: "atelier-note atelier-axis" }, text("moreTags", { count: tags.length - MOST }))] : [];
    this.list.replaceChildren(
      ...(without || this.exact === "" ? [entry("", text("withoutCaption"), without)] : []), ...tags.slice(0, MOST).map(([tag, count]) => entry(tag, tag, count)), ...more,
    );
  }
}
