// "Pictures and captions" on Load Dataset: every picture with its bucket, the part that is trained and its caption, to be looked at
// and mended. A file is written only while it still is what the page shows.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { CaptionFilter, dropEmpty } from "./lib/caption_filter.js";
import { Dialog } from "./lib/dialog.js";
import { make } from "./lib/dom.js";
import { below, bring } from "./lib/files.js";
import { filmMark, place, tools } from "./lib/picture_tools.js";
import { ask } from "./lib/server.js";
import { text } from "./lib/text.js";
import { Adding, account, came, receive, usesFilms } from "./upload.js";

const SETTINGS = [
  "folder", "resolution", "repeats", "buckets", "bucket_step", "crop", "caption_extension", "nested", "captions", "class_caption",
  "caption_encoding", "caption_lines", "head_margin", "fixed_height", "bucket_no_upscale", "caption_prefix", "caption_suffix",
  "wildcards", "further_captions", "clip_frames", "clip_start", "clip_rate",
]; // widgets that decide which pictures there are and how they are cut
const OPERATIONS = ["add", "addFirst", "remove", "replace"];
const TEXTS = /\.(txt|caption|jsonl)$/i; // which are no rows of their own
const share = (part, whole) => `${(100 * part) / whole}%`;

class Captions extends Dialog {
  constructor(node) {
    super();
    this.node = node;
    this.settings = Object.fromEntries(node.widgets.filter((w) => SETTINGS.includes(w.name)).map((w) => [w.name, w.value]));
    this.rows = new Map(); // picture -> { item, words, caption and version of the file, seen: the text before it was typed in }
    this.past = []; // what can be taken back, newest last
    this.loads = 0; // so that no picture is shown as it was before
    this.build();
    this.inTurn(() => this.load());
  }

  build() {
    const field = (key, attributes) => make("input", { placeholder: text(key), "aria-label": text(key), ...attributes });
    this.filter = new CaptionFilter(() => this.rows, (sentence) => (this.said.textContent = sentence));
    this.operation = make("select", { "aria-label": text("operation"), change: () => this.ready() });
    this.operation.append(...OPERATIONS.map((value) => make("option", { value }, text(value))));
    this.tags = field("tags", { type: "text", placeholder: text("tagsHint"), title: text("tags") });
    this.other = field("replaceBy", { type: "text" });
    this.apply = this.button("applyAll", () => this.inTurn(() => this.change()));
    this.undoButton = this.button("undo", () => this.inTurn(() => this.undo()));
    this.saveButton = this.button("saveCaptions", () => this.inTurn(() => this.save()));
    this.list = make("ul", { class: "atelier-pictures", "aria-label": text("pictures") });
    const adding = this.button("openAdding", () => new Adding(this.node, [], (answer) => this.inTurn(() => this.came(answer))));
    const controls = [this.filter.field, this.operation, this.tags, this.other, this.apply, adding];
    this.open(text("captionsOf", { folder: this.settings.folder }), controls, make("div", { class: "atelier-captions" }, this.filter.list, this.list), [this.undoButton, this.saveButton]);
    receive(this.dialog, (files) => files.length && this.tried(() => this.receive(files)));
  }

  /** Files that were dropped on the window go into its folder. */
  async receive(files) {
    const { folder, caption_extension: extension } = this.settings;
    const answer = await bring(below(files), folder, extension, (done, count) => { this.said.textContent = text("sent", { done, count }); });
    this.brought(answer);
    await this.inTurn(() => this.load());
    const unused = new Set(usesFilms(this.node) ? [] : answer.films);
    const isDeeper = ([, path]) => path.includes("/") && !unused.has(path) && !TEXTS.test(path) && !path.endsWith(extension);
    const isShown = !answer.new.some(isDeeper) || answer.new.some(([, path]) => this.rows.has(path));
    const more = [...(isShown ? [] : [text("noneListed", { folder })]), this.said.textContent].map((sentence) => make("p", {}, sentence));
    this.said.replaceChildren(came(answer, this.node), ...account(answer), ...more);
  }

  /** Pictures have come into a folder, which may be another one than this window's. */
  async came(answer) {
    if (!this.rows.size) this.settings.folder = this.node.widgets.find((widget) => widget.name === "folder").value;
    this.brought(answer);
    if (`${answer.folder}/`.startsWith(`${this.settings.folder}/`)) await this.load();
  }

  /** What has come can be taken back: it is put aside, with what belongs to it by then. */
  brought({ folder, new: fresh }) {
    if (!fresh.length) return;
    const files = fresh.map(([, path]) => path);
    const places = new Set(files.map((path) => `${folder}/${path}`));
    const where = { ...place(this.settings), folder };
    const undo = async () => {
      await ask("pictures/take_back", { ...where, files });
      for (const [picture, { item }] of this.rows) {
        if (!places.has(`${this.settings.folder}/${picture}`)) continue;
        this.rows.delete(picture);
        item.remove();
      }
      if (this.rows.size) await this.load(); // an empty folder cannot be
    };
    this.past.push({ undo, said: text("putAside", { count: files.length }) });
  }

  mayClose() {
    const count = this.edited().length;
    return !count || window.confirm(text("unsaved", { count }));
  }

  /** Shows the folder as it is now; what was written and not saved yet stays, also if the folder cannot be read. */
  async load() {
    this.said.textContent = text("reading");
    const { pictures, notes } = await ask("pictures", { settings: this.settings });
    const [unsaved, at] = [this.edited(), this.list.scrollTop];
    const hidden = [...this.rows].filter(([, row]) => row.item.hidden).map(([picture]) => picture);
    this.loads += 1;
    this.rows.clear();
    this.list.replaceChildren(...pictures.map((picture) => this.row(picture)));
    const elsewhere = this.keep(unsaved);
    for (const picture of hidden) if (this.rows.has(picture)) this.rows.get(picture).item.hidden = true;
    this.list.scrollTop = at;
    const told = elsewhere.length ? [text("elsewhere", { names: elsewhere.join(", ") })] : [];
    const films = pictures.filter((one) => one.film).length;
    const stills = pictures.length - films;
    const counts = [...(stills || !films ? [text("count", { count: stills })] : []), ...(films ? [text("films", { count: films })] : [])];
    this.said.textContent = [...told, ...counts, ...notes].join(" · ");
  }

  /** Puts what was not saved back into the rows, over what the person saw when writing it; gives the pictures whose file is another now. */
  keep(unsaved) {
    const elsewhere = [];
    for (const [picture, { words, caption, version }] of unsaved) {
      const row = this.rows.get(picture);
      if (!row) continue; // the picture was taken out since
      if (row.version !== version && words.value !== (row.caption ?? "")) {
        elsewhere.push(picture);
        Object.assign(row, { caption, version }); // the server refuses to write over what nobody here has seen
      }
      row.words.value = row.seen = words.value;
    }
    return elsewhere;
  }

  /** A small picture of a folder, as it is now. */
  image(folder, picture, alt = "") {
    const films = this.settings.clip_frames ? { films: "1" } : {};
    const query = new URLSearchParams({ folder, picture, nested: this.settings.nested ? "1" : "0", load: this.loads, ...films });
    return make("img", { src: api.apiURL(`/lora_atelier/thumbnail?${query}`), alt, loading: "lazy" });
  }

  /** What a model that edits is shown beside the picture. */
  controls(controls) {
    const shown = controls.map(({ folder, picture }, i) => {
      const label = i ? text("controlMore", { number: i + 1 }) : text("controlFirst");
      return make("figure", { title: picture }, this.image(folder, picture, `${label}: ${picture}`), make("figcaption", {}, label));
    });
    return shown.length ? [make("div", { class: "atelier-controls" }, ...shown)] : [];
  }

  /** How long a film is, and what its clips are. */
  film({ frames, seconds, clips, each }) {
    const length = text(seconds ? "filmFacts" : "filmFrames", { count: frames, seconds });
    return [length, text(each > 1 ? "filmClips" : "filmStills", { count: clips, each })];
  }

  row({ picture, caption, version, fallback, size, bucket, box, repeats, choices, film, controls = [] }) {
    const kept = make("span", { title: text("kept") });
    Object.assign(kept.style, {
      left: share(box[0], size[0]), top: share(box[1], size[1]),
      width: share(box[2] - box[0], size[0]), height: share(box[3] - box[1], size[1]),
    });
    const words = make("textarea", {
      placeholder: fallback || text("noCaption"), "aria-label": text("captionOf", { picture }), spellcheck: "true",
      input: () => this.ready(true), change: () => this.typed(picture),
    });
    words.value = caption ?? "";
    const shown = text("facts", { size: size.join(" × "), bucket: bucket.join(" × "), count: repeats });
    const facts = [shown, ...(film ? this.film(film) : []), ...(choices > 1 ? [text("choices", { count: choices })] : [])].join(" · ");
    const image = this.image(this.settings.folder, picture);
    const item = make(
      "li", {}, make("div", {}, make("div", { class: "atelier-shown" }, image, kept, ...filmMark(film)), ...this.controls(controls), tools(this, picture, Boolean(film))),
      make("div", { class: "atelier-words" }, make("b", {}, picture), make("span", { class: "atelier-axis" }, facts), words),
    );
    this.rows.set(picture, { item, words, caption, version, seen: words.value });
    return item;
  }

  /** A caption was changed by hand, which can be taken back. It is one line, unless its lines mean something or were there. */
  typed(picture) {
    const row = this.rows.get(picture);
    const lines = this.settings.caption_lines !== "one text" || row.caption?.includes("\n");
    const now = row.words.value.split("\n").map((line) => line.trim()).filter(Boolean).join(lines ? "\n" : " ");
    if (now !== row.seen) this.past.push({ captions: new Map([[picture, row.seen]]) });
    row.words.value = row.seen = now;
    dropEmpty(this.past, this.rows);
    this.ready();
  }

  edited() {
    return [...this.rows].filter(([, row]) => row.words.value !== (row.caption ?? ""));
  }

  /** `typing`: a caption is in the middle of a change, which is none yet. */
  ready(typing = false) {
    const count = this.edited().length;
    for (const row of this.rows.values()) row.words.classList.toggle("atelier-edited", row.words.value !== (row.caption ?? ""));
    this.saveButton.disabled = count === 0;
    this.saveButton.textContent = count ? text("saveCount", { count }) : text("saveCaptions");
    if (!typing) this.filter.draw();
    this.undoButton.disabled = this.past.length === 0;
    this.other.hidden = this.operation.value !== "replace";
  }

  captions(shownOnly) {
    const rows = [...this.rows].filter(([, row]) => !shownOnly || !row.item.hidden);
    return Object.fromEntries(rows.map(([picture, row]) => [picture, row.words.value]));
  }

  put(captions) {
    for (const [picture, caption] of captions) {
      const row = this.rows.get(picture);
      if (row) row.words.value = row.seen = caption ?? ""; // the picture may have been taken out since
    }
  }

  async change() {
    const before = this.captions(true);
    const wanted = { captions: before, operation: this.operation.value, text: this.tags.value, other: this.other.value };
    const after = (await ask("captions/change", wanted)).captions;
    const changed = Object.keys(after).filter((picture) => after[picture] !== before[picture]);
    if (changed.length) this.past.push({ captions: new Map(changed.map((picture) => [picture, before[picture]])) });
    this.put(changed.map((picture) => [picture, after[picture]]));
    dropEmpty(this.past, this.rows);
    this.said.textContent = text("changedCount", { count: changed.length });
  }

  async undo() {
    const step = this.past.at(-1);
    if (!step) return;
    try {
      if (step.undo) await step.undo();
      else if (step.edits && !(await this.write(step.edits))) return;
    } catch (error) {
      if (error.status) this.past = this.past.filter((one) => one !== step); // what is refused would bar the way to the steps before it
      throw error;
    }
    this.past = this.past.filter((one) => one !== step);
    if (!step.undo) this.put(step.edits ? step.edits.map(({ picture, caption }) => [picture, caption]) : step.captions);
    dropEmpty(this.past, this.rows);
    this.said.textContent = step.said ?? text(step.captions ? "undone" : "undoneSaved");
  }

  async save() {
    const edits = this.edited().map(([picture, { words, version }]) => ({ picture, caption: words.value, version }));
    if (!edits.length) return;
    const undo = await this.write(edits);
    if (!undo) return;
    this.past.push({ edits: undo });
    this.said.textContent = text("savedCount", { count: edits.length });
  }

  /** Writes edits to the files; answers with those that undo them, or with nothing if the person rather keeps an encoding. */
  async write(edits, utf8 = false) {
    const { caption_encoding: encoding = "detect" } = this.settings;
    const { undo, now, unclear } = await ask("captions", { ...place(this.settings), encoding, edits, utf8 });
    if (unclear) {
      this.said.textContent = unclear;
      return window.confirm(text("asUtf8", { reason: unclear })) ? this.write(edits, true) : undefined;
    }
    for (const { picture, caption, version } of now) Object.assign(this.rows.get(picture) ?? {}, { caption, version });
    return undo;
  }
}

app.registerExtension({
  name: "lora-atelier.captions",
  nodeCreated(node) {
    if (node.comfyClass !== "LoadDataset") return;
    const button = node.addWidget("button", "captions_desk", null, () => new Captions(node), { serialize: false });
    button.label = text("openCaptions");
    button.serialize = false;
  },
});
