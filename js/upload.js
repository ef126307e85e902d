// "Add pictures" on Load Dataset: files and folders that are dropped or chosen, and what ComfyUI has drawn, go into a folder of choice.
// What is there already is never written over; the server says what became of each file.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Dialog } from "./lib/dialog.js";
import { make } from "./lib/dom.js";
import { below, bring, chosen, dropped, folderOf, mayBring } from "./lib/files.js";
import { ask } from "./lib/server.js";
import { filmMark } from "./lib/picture_tools.js";
import { text } from "./lib/text.js";
import { folded } from "./lib/told.js";

document.head.append(make("link", { rel: "stylesheet", href: new URL("./pictures.css", import.meta.url).href }));

const NEW = "input/my-pictures";
const isFolder = (value) => typeof value === "string" && /^\w+\/./.test(value);
const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Whether a Load Dataset node reads what is in `inner`, a path below its folder. */
const reads = (node, inner) => Boolean(widgetOf(node, "nested")?.value) || /^(img\/)?\d+_[^/]*$/.test(inner);

/** Chooses a folder in a Load Dataset node, also one that its list doesn't have yet. False if it is part of the node's and not read. */
function choose(node, folder) {
  const widget = widgetOf(node, "folder");
  const now = widget.value;
  if (now === folder) return true;
  if (isFolder(now) && folder.startsWith(`${now}/`)) return reads(node, folder.slice(now.length + 1));
  const values = widget.options?.values;
  if (Array.isArray(values) && !values.includes(folder)) values.push(folder);
  widget.value = folder;
  widget.callback?.(folder);
  node.setDirtyCanvas?.(true, true);
  return true;
}

export class Adding extends Dialog {
  /** `added(answer)` is called when pictures have come. */
  constructor(node, files = [], added = () => {}) {
    super();
    [this.node, this.files, this.added, this.choices] = [node, [], added, 0];
    this.build();
    this.take(files);
  }

  build() {
    const now = widgetOf(this.node, "folder")?.value;
    const known = (widgetOf(this.node, "folder")?.options?.values ?? []).filter?.(isFolder) ?? [];
    const list = make("datalist", { id: "lora-atelier-folders" }, ...known.map((value) => make("option", { value })));
    this.folder = make("input", {
      type: "text", list: list.id, "aria-label": text("intoFolder"), placeholder: NEW, spellcheck: "false", input: () => this.ready(),
    });
    this.folder.value = isFolder(now) ? now : "";
    this.single = make("input", { type: "file", multiple: true, hidden: true, change: () => this.picked(this.single) });
    this.whole = make("input", { type: "file", webkitdirectory: true, hidden: true, change: () => this.picked(this.whole) });
    this.place = make("div", { class: "atelier-drop" }, make("p", {}, text("dropHere")));
    this.made = make("ul", { class: "atelier-made", "aria-label": text("made"), hidden: true });
    this.done = make("div", { class: "atelier-scroll atelier-done", role: "status" });
    this.bar = make("progress", { max: 1, value: 0, hidden: true, "aria-label": text("sending") });
    this.start = this.button("addPictures", () => this.send());
    this.end = this.button("endAdding", () => this.stop?.abort());
    const body = make("div", { class: "atelier-adding" }, this.place, this.made, this.bar, this.done);
    const choices = [
      this.button("chooseFiles", () => this.single.click()), this.button("chooseFolder", () => this.whole.click()),
      this.button("chooseMade", () => this.offer()), this.button("chooseNone", () => this.forget()),
    ];
    const label = make("label", { class: "atelier-into" }, text("intoFolder"), this.folder, list);
    this.open(text("addTitle"), [label, ...choices, this.single, this.whole], body, [this.end, this.start]);
    receive(this.dialog, (files) => this.take(files));
  }

  ready() {
    const count = this.files.length;
    this.start.disabled = !count || Boolean(this.stop);
    this.start.textContent = count ? text("addCount", { count }) : text("addPictures");
    this.end.hidden = !this.stop;
    this.place.classList.toggle("atelier-some", count > 0);
  }

  mayClose() {
    return !this.stop;
  }

  picked(input) {
    this.take(chosen(input));
    input.value = ""; // the same may be chosen again
  }

  take(files) {
    if (!files.length) return;
    const top = folderOf(files);
    if (!this.folder.value) this.folder.value = top ? `input/${top}` : NEW;
    this.choices += 1; // two folders may have files of one name, each with its own caption
    this.files.push(...below(files).map((one) => ({ ...one, batch: this.choices })));
    this.list();
  }

  list() {
    const names = this.files.map(({ name }) => name);
    this.place.firstChild.textContent = names.length ? text("waiting", { count: names.length, names: names.slice(0, 8).join(", ") }) : text("dropHere");
    this.done.replaceChildren();
    this.said.textContent = "";
    this.ready();
  }

  forget(files = this.files) {
    this.files = this.files.filter((one) => !files.includes(one));
    for (const button of this.made.querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
    this.list();
  }

  /** What ComfyUI has drawn, to be chosen by a click. */
  async offer() {
    const { pictures, more, unseen } = await ask("pictures/made");
    this.made.hidden = false;
    this.made.replaceChildren(...pictures.map((held) => make("li", {}, this.choice(held))));
    const said = pictures.length ? text("madeCount", { count: pictures.length, more }) : text("noneMade");
    this.said.textContent = unseen ? `${said} · ${text("madeUnseen")}` : said;
  }

  choice(held) {
    const path = held.subfolder && held.subfolder !== "." ? `${held.subfolder}/${held.filename}` : held.filename;
    const image = make("img", { src: api.apiURL(`/lora_atelier/thumbnail?${new URLSearchParams({ made: path })}`), alt: path, loading: "lazy" });
    const button = make("button", { type: "button", "aria-pressed": "false", title: path, click: () => this.toggle(button, held) }, image, ...filmMark(held.film));
    return button;
  }

  toggle(button, held) {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    if (on) this.take([{ name: held.filename, held }]);
    else this.files = this.files.filter((one) => one.held !== held);
    this.list();
  }

  async send() {
    const [files, folder] = [[...this.files], this.folder.value.trim() || NEW];
    this.stop = new AbortController();
    this.bar.hidden = false;
    this.ready();
    try {
      const answer = await bring(files, folder, widgetOf(this.node, "caption_extension")?.value ?? ".txt", (done, count) => {
        this.bar.value = done / count;
        this.said.textContent = text("sent", { done, count });
      }, this.stop.signal);
      this.forget(files); // what was dropped meanwhile waits
      this.tell(answer);
      if (!answer.new.length && !answer.there.length) return;
      const isRead = choose(this.node, answer.folder);
      if (!isRead) this.said.textContent += ` · ${text("notRead", { folder: widgetOf(this.node, "folder").value })}`;
      this.added(answer);
    } catch (error) {
      this.said.textContent = this.stop.signal.aborted ? text("ended") : error.message;
    } finally {
      this.stop = undefined;
      this.bar.hidden = true;
      this.ready();
    }
  }

  tell(answer) {
    this.said.textContent = came(answer, this.node);
    this.done.replaceChildren(...account(answer));
  }
}

/** Whether a Load Dataset node uses films. */
export const usesFilms = (node) => Boolean(String(widgetOf(node, "clip_frames")?.value ?? "").trim());

/** What became of files, in one line; `node`: the Load Dataset that they were brought to. */
export function came({ folder, new: fresh, there, left, films = [] }, node) {
  const parts = [text("came", { count: fresh.length, folder })];
  if (films.length && !usesFilms(node)) parts.push(text("filmsUnused", { count: films.length }));
  if (there.length) parts.push(text("wasThere", { count: there.length }));
  if (left.length) parts.push(text("wasLeft", { count: left.length }));
  return parts.join(" · ");
}

/** The same one by one: what is left out first, then the new names. */
export function account({ new: fresh, left }) {
  const lines = (rows) => make("ul", {}, ...rows.map((row) => make("li", {}, row)));
  const renamed = fresh.filter(([name, path]) => name !== path);
  return [
    ...(left.length ? [make("h3", {}, text("wasLeft", { count: left.length })), lines(left.map(([name, why]) => `${name}: ${why}`))] : []),
    ...(renamed.length ? [folded(text("renamed", { count: renamed.length }), lines(renamed.map((pair) => pair.join(" → "))))] : []),
  ];
}

/** Lets files be dropped on an element. */
export function receive(element, take) {
  const light = (on) => element.classList.toggle("atelier-over", on);
  element.addEventListener("dragover", (event) => {
    if (!mayBring(event)) return;
    event.preventDefault();
    event.stopPropagation();
    light(true);
  });
  element.addEventListener("dragleave", () => light(false));
  element.addEventListener("drop", async (event) => {
    if (!mayBring(event)) return;
    event.preventDefault(); // the canvas would load a workflow out of a picture
    event.stopPropagation();
    light(false);
    take(await dropped(event));
  });
}

app.registerExtension({
  name: "lora-atelier.upload",
  nodeCreated(node) {
    if (node.comfyClass !== "LoadDataset") return;
    const button = node.addWidget("button", "add_pictures", null, () => new Adding(node), { serialize: false });
    button.label = text("openAdding");
    button.serialize = false;
    node.onDragOver = mayBring;
    node.onDragDrop = async (event) => {
      const files = await dropped(event);
      if (files.length) new Adding(node, files);
      return files.length > 0;
    };
  },
});
