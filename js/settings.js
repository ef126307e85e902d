// Presets of one's own, and settings of other trainers: a dialog on Configure LoRA that saves, reads and takes them over. Files are
// kept through the host's own store of the person's data; what is in them is read and checked by the server.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Dialog } from "./lib/dialog.js";
import { make, root } from "./lib/dom.js";
import { partsOf, valuesOf } from "./lib/graph.js";
import { ask } from "./lib/server.js";
import { text } from "./lib/text.js";
import { panels } from "./presets.js";

const FOLDER = "lora-atelier/presets";
const HEADER = 8; // bytes before a safetensors file's header, which tell its length
const LONGEST = 16 * 1024 * 1024;
const TOLD = /^(ss_|lora_atelier\.)/; // what a LoRA's metadata say of its training; graphs and thumbnails stay here
const LONG = ["ss_tag_frequency", "ss_datasets"]; // and set nothing

const ORIGINS = { "kohya's trainer": "ofKohya", "a LoRA's metadata": "ofMetadata" };

/** What the server calls the origin of settings, in the language of the page; most are names. */
function nameOf(origin) {
  const own = /^the preset (.*)$/s.exec(origin)?.[1];
  return own === undefined ? (origin in ORIGINS ? text(ORIGINS[origin]) : origin) : text("ofPreset", { name: own });
}

class Settings extends Dialog {
  constructor(node) {
    super();
    this.node = node;
    this.list = make("select", { "aria-label": text("ownPresets") });
    this.name = make("input", { type: "text", "aria-label": text("presetName"), placeholder: text("presetName") });
    this.file = make("input", {
      type: "file", "aria-label": text("fromFile"), accept: ".json,.toml,.yaml,.yml,.safetensors",
      change: () => this.tried(() => this.readFile(this.file.files[0])),
    });
    this.found = make("div", { class: "atelier-scroll" });
    this.taker = this.button("takeOver", () => this.take());
    this.list.addEventListener("change", () => this.tried(() => this.readOwn()));
  }

  async show() {
    const label = (key, ...elements) => make("label", { class: "atelier-labelled" }, make("span", {}, text(key)), ...elements);
    const body = make(
      "div", { class: "atelier-gallery" },
      make(
        "div", { class: "atelier-choices" },
        label("ownPresets", this.list),
        make("div", { class: "atelier-row" }, this.button("downloadPreset", () => this.download()), this.button("deletePreset", () => this.remove())),
        label("saveAs", this.name), make("div", { class: "atelier-row" }, this.button("savePreset", () => this.save())),
        label("fromFile", this.file), make("p", { class: "atelier-note" }, text("fromFileHelp")),
      ),
      this.found,
    );
    this.open(text("settingsTitle"), [], body, [this.taker]);
    await this.tried(() => this.refresh());
  }

  ready() {
    this.taker.disabled = !this.read;
  }

  nodes() {
    return partsOf(this.node, root());
  }

  async refresh(chosen = "") {
    const answer = await api.fetchApi(`/userdata?dir=${encodeURIComponent(FOLDER)}`);
    const names = answer.ok ? (await answer.json()).filter((name) => name.endsWith(".json")).sort() : [];
    this.list.replaceChildren(make("option", { value: "" }, text(names.length ? "choosePreset" : "noPresets")),
      ...names.map((name) => make("option", { value: name }, name.replace(/\.json$/, ""))));
    this.list.value = chosen;
  }

  place(name = this.list.value) {
    if (!name) throw new Error(text("choosePreset"));
    return `/userdata/${encodeURIComponent(`${FOLDER}/${name}`)}`;
  }

  async own() {
    const answer = await api.fetchApi(this.place());
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    return answer.text();
  }

  async readOwn() {
    this.read = null;
    this.found.replaceChildren();
    if (this.list.value) this.tell(await ask("settings", { text: await this.own(), name: this.list.value }));
  }

  async save() {
    const nodes = this.nodes().map((node) => ({ type: node.comfyClass, values: valuesOf(node) }));
    const made = await ask("preset", { name: this.name.value, nodes });
    const there = [...this.list.options].some((option) => option.value === made.file);
    if (there && this.asked !== made.file) {
      this.asked = made.file;
      throw new Error(text("presetThere", { name: this.name.value }));
    }
    const answer = await api.fetchApi(`${this.place(made.file)}?overwrite=${there}`, { method: "POST", body: made.text });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    this.asked = "";
    await this.refresh(made.file);
    this.said.textContent = text("presetSaved", { name: this.name.value });
  }

  async download() {
    const address = URL.createObjectURL(new Blob([await this.own()], { type: "application/json" }));
    make("a", { href: address, download: this.list.value }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  async remove() {
    const name = this.list.value;
    const place = this.place();
    if (this.doomed !== name) {
      this.doomed = name;
      throw new Error(text("deleteAgain", { name: name.replace(/\.json$/, "") }));
    }
    const answer = await api.fetchApi(place, { method: "DELETE" });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    this.doomed = "";
    await this.refresh();
    await this.readOwn();
  }

  /** Of a LoRA only the metadata is read, which stand at its beginning. */
  async readFile(file) {
    this.read = null;
    this.found.replaceChildren();
    if (!file) return;
    let contents;
    if (file.name.endsWith(".safetensors")) {
      const length = Number(new DataView(await file.slice(0, HEADER).arrayBuffer()).getBigUint64(0, true));
      if (length > LONGEST) throw new Error(text("noMetadata", { name: file.name }));
      const header = JSON.parse(await file.slice(HEADER, HEADER + length).text());
      if (!header.__metadata__) throw new Error(text("noMetadata", { name: file.name }));
      const kept = Object.entries(header.__metadata__).filter(([key]) => TOLD.test(key) && !LONG.includes(key));
      contents = JSON.stringify(Object.fromEntries(kept));
    } else {
      if (file.size > LONGEST) throw new Error(text("noMetadata", { name: file.name }));
      contents = await file.text();
    }
    this.list.value = "";
    this.tell(await ask("settings", { text: contents, name: file.name }));
  }

  /** What a file sets, and what of it has no counterpart. */
  tell(answer) {
    this.read = answer;
    const { origin, nodes, lost, warning } = answer;
    const rows = (table) => Object.entries(table).map(([name, value]) => make("li", {}, `${name}: ${value}`));
    const sets = Object.entries(nodes).flatMap(([kind, widgets]) => [make("h3", {}, kind), make("ul", {}, ...rows(widgets))]);
    const gone = lost.map(({ setting, value, why }) => make("li", {}, make("b", {}, setting), ` ${value}: ${why}`));
    this.found.replaceChildren(
      make("h2", {}, text("settingsOf", { origin: nameOf(origin) })),
      make("p", { class: "atelier-note atelier-bad" }, warning), ...sets,
      ...(gone.length ? [make("h3", {}, text("noCounterpart", { count: gone.length })), make("ul", { class: "atelier-lost" }, ...gone)] : []),
    );
  }

  take() {
    const first = new Set();
    const changes = this.nodes().flatMap((node) => {
      const values = this.read.nodes[node.comfyClass];
      if (!values || first.has(node.comfyClass)) return [];
      first.add(node.comfyClass);
      return [[node, { ...this.read.reset[node.comfyClass], ...values }]];
    });
    const left = Object.keys(this.read.nodes).filter((kind) => !first.has(kind));
    const { origin, lost } = this.read;
    const parts = [text("takenFrom", { origin: nameOf(origin) }), lost.length ? text("noCounterpart", { count: lost.length }) : "",
      left.length ? text("noNode", { nodes: left.join(", ") }) : ""];
    panels.get(this.node).set(changes, parts.filter(Boolean).join(" "));
    this.close();
  }
}

app.registerExtension({
  name: "lora-atelier.settings",
  async nodeCreated(node) {
    if (node.comfyClass !== "ConfigureLoRA") return;
    const button = node.addWidget("button", "settings", null, () => new Settings(node).show(), { serialize: false });
    button.label = text("openSettings");
    button.serialize = false;
  },
});
