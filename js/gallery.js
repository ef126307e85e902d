// "Look and choose" on Epoch Weight Grid: every cell large or small, two beside each other, favourites, and the LoRA of a cell put
// into a loader under a name of one's choice.
import { app } from "../../scripts/app.js";
import { Dialog } from "./lib/dialog.js";
import { make, root } from "./lib/dom.js";
import { allNodes, outputOf } from "./lib/graph.js";
import { momentOf } from "./lib/moment.js";
import { ask, pictureOf } from "./lib/server.js";
import { text } from "./lib/text.js";

const ZOOM = [64, 512, 160]; // px of a cell: least, most, at first
const [HEADS, BETWEEN] = [70, 5]; // px: of the column of strengths, and of what lies between two cells
const number = (value) => String(Number(Number(value).toPrecision(6)));
const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

class Gallery extends Dialog {
  /** `shown`: {run, page} of the page to begin with; the newest without it. */
  constructor(shown) {
    super();
    this.chosen = []; // places ("2,0") of the cells that are shown large, at most two
    this.build();
    this.tried(() => this.list(shown));
  }

  build() {
    this.pages = make("select", { "aria-label": text("gridPage"), change: () => this.tried(() => this.load()) });
    const [min, max, value] = ZOOM;
    this.zoom = make("input", { type: "range", min, max, value, "aria-label": text("zoom"), title: text("zoom"), input: () => this.scale() });
    this.zoom.addEventListener("input", () => (this.zoomed = true), { once: true });
    this.only = make("input", { type: "checkbox", change: () => this.mark() });
    this.table = make("table", { class: "atelier-cells" });
    this.large = make("div", { class: "atelier-large", "aria-live": "polite" });
    this.star = this.button("favourite", () => this.favour());
    this.name = make("input", { type: "text", "aria-label": text("keepName"), placeholder: text("keepName") });
    this.loader = make("select", { "aria-label": text("intoLoader"), title: text("intoLoader") });
    this.use = this.button("useThis", () => this.keep());
    const only = make("label", {}, this.only, text("onlyFavourites"));
    const body = make("div", { class: "atelier-gallery atelier-grid" }, make("div", { class: "atelier-scroll", tabindex: 0, "aria-label": text("cells") }, this.table), this.large);
    this.scale();
    this.open(text("openGrid"), [this.pages, this.zoom, only], body, [this.star, this.name, this.loader, this.use]);
  }

  async list(shown) {
    const { pages, damaged } = await ask("grids");
    if (!pages.length) {
      this.said.textContent = damaged[0] ? `${damaged[0].run}: ${damaged[0].why}` : text("noGrids");
      return;
    }
    const label = ({ run, prompt, seed }) => text("gridOf", { run, prompt: prompt.length > 60 ? `${prompt.slice(0, 59)}…` : prompt, seed });
    // What cannot be read is shown with the reason, and cannot be chosen.
    const aside = damaged.map(({ run, why }) => make("option", { disabled: true, title: why }, `${run}: ${why}`));
    this.pages.replaceChildren(...pages.map((page) => make("option", { value: JSON.stringify([page.run, page.page]) }, label(page))), ...aside);
    const first = pages.find(({ run, page }) => run === shown?.run && page === shown.page) ?? pages[0];
    this.pages.value = JSON.stringify([first.run, first.page]);
    await this.load();
  }

  async load() {
    const [run, page] = JSON.parse(this.pages.value);
    this.grid = await ask(`grids/page?${new URLSearchParams({ run, page })}`);
    this.chosen = [];
    this.fill();
    this.said.textContent = this.grid.advice?.reason ?? "";
  }

  /** Facts of the cell at a place: column 0 is without any LoRA and the same in every row. */
  facts(place) {
    const [column, row] = place.split(",").map(Number);
    const cell = this.grid.cells[place] ?? {};
    const epoch = column ? this.grid.epochs[column - 1] : null;
    const strength = column ? this.grid.strengths[row] : 0;
    const clip = column ? (this.grid.text_strength ?? strength) : 0;
    return { ...cell, column, row, epoch, strength, clip, score: this.grid.scores[place] };
  }

  /** The cell in words. */
  words(place) {
    const { epoch, strength, clip, score, favourite, failed } = this.facts(place);
    const parts = [epoch ? text(epoch.step ? "cellOf" : "cellWithoutStep", { epoch: momentOf(epoch.label), step: epoch.step, strength: number(strength) }) : text("noLora")];
    if (epoch && clip !== strength) parts.push(text("textStrength", { strength: number(clip) }));
    if (score) parts.push(text("scoresOf", { likeness: score.likeness.toFixed(2), nearest: score.nearest.toFixed(2), agreement: score.agreement.toFixed(2) }));
    if (failed) parts.push(failed);
    if (favourite) parts.push(text("isFavourite"));
    return parts.join(" · ");
  }

  fill() {
    const { epochs, strengths, prompt, sampler, scheduler, steps, cfg, seed } = this.grid;
    const heads = [text("noLora"), ...epochs.map((epoch) => momentOf(epoch.label))].map((label) => make("th", { scope: "col" }, label));
    const rows = strengths.map((strength, row) => {
      const cells = [0, ...epochs.map((_epoch, at) => at + 1)].map((column) => this.cell(column ? `${column},${row}` : "0,0", row));
      return make("tr", {}, make("th", { scope: "row" }, number(strength)), ...cells);
    });
    const caption = make("caption", {}, text("gridCaption", { prompt, sampler, scheduler, count: steps, cfg: number(cfg), seed }));
    this.table.replaceChildren(caption, make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...rows));
    this.mark();
    this.show();
    this.fitCells();
  }

  cell(place, row) {
    const { picture, failed } = this.facts(place);
    const inside = picture ? make("img", { src: pictureOf(picture, true), alt: "", loading: "lazy" }) : make("span", {}, failed ?? text("notDrawn"));
    const say = () => (this.said.textContent = this.words(place));
    const button = make(
      "button", { type: "button", "data-place": place, "data-at": `${place.split(",")[0]},${row}`, mouseenter: say, focus: say, click: (event) => this.choose(place, event.shiftKey || event.ctrlKey || event.metaKey) },
      inside,
    );
    return make("td", {}, button);
  }

  /** Shows a cell large; `beside`: next to the one that is shown already. */
  choose(place, beside) {
    if (beside && this.chosen.length && this.chosen[0] !== place) this.chosen = [this.chosen[0], place];
    else this.chosen = this.chosen.length === 1 && this.chosen[0] === place ? [] : [place];
    this.mark();
    this.show();
    const { epoch, strength } = this.facts(place);
    if (epoch) this.name.value = `${this.grid.run}-${epoch.label.replace(/[^\w.+-]+/g, "-")}`;
    this.said.textContent = this.words(place);
    if (epoch && strength !== 1) this.said.textContent += ` · ${text("usedAt", { strength: number(strength) })}`;
    this.ready();
  }

  /** What is chosen, marked and filtered, on the small cells. */
  mark() {
    for (const button of this.table.querySelectorAll("button")) {
      const { favourite } = this.facts(button.dataset.place);
      button.setAttribute("aria-pressed", String(this.chosen.includes(button.dataset.place)));
      button.setAttribute("aria-label", this.words(button.dataset.place));
      button.classList.toggle("atelier-favourite", Boolean(favourite));
      button.classList.toggle("atelier-dim", this.only.checked && !favourite);
    }
  }

  show() {
    const figures = this.chosen.map((place) => {
      const { picture, film, failed } = this.facts(place);
      const inside = picture ? make("img", { src: pictureOf(film ?? picture), alt: this.words(place) }) : make("span", {}, failed ?? text("notDrawn"));
      return make("figure", {}, inside, make("figcaption", {}, this.words(place)));
    });
    this.large.replaceChildren(...(figures.length ? figures : [make("p", { class: "atelier-axis" }, text("chooseHelp"))]));
  }

  /** Until the person chooses a size, the cells are as large as the window has room for in its width. */
  fitCells() {
    const room = this.table.parentElement.clientWidth - HEADS;
    const side = Math.floor(room / (this.grid.epochs.length + 1)) - BETWEEN;
    if (this.zoomed || side <= 0) return;
    this.zoom.value = Math.min(side, ZOOM[1]);
    this.scale();
  }

  scale() {
    this.table.style.setProperty("--cell", `${this.zoom.value}px`);
  }

  /** The cell that the buttons below are about: the last one chosen. */
  current() {
    const place = this.chosen.at(-1);
    return place ? { place, ...this.facts(place) } : null;
  }

  ready() {
    const now = this.grid ? this.current() : null;
    this.star.disabled = !now?.cell;
    this.star.textContent = now?.favourite ? text("noFavourite") : text("favourite");
    for (const control of [this.use, this.name, this.loader]) control.disabled = !now?.epoch;
    const loaders = allNodes(root()).filter((node) => widgetOf(node, "lora_name"));
    const value = this.loader.value;
    const titled = loaders.map((node) => make("option", { value: String(loaders.indexOf(node)) }, text("intoNode", { title: node.title ?? node.type, id: node.id })));
    this.loader.replaceChildren(make("option", { value: "" }, text("noLoader")), ...titled);
    this.loader.value = loaders[value] ? value : "";
    this.loaders = loaders;
  }

  async favour() {
    const { cell, favourite } = this.current();
    await ask("grids/favourite", { run: this.grid.run, cell, on: !favourite });
    // A picture that lies at several places (the same strength twice) is one favourite.
    for (const other of Object.values(this.grid.cells)) if (other.cell === cell) other.favourite = !favourite;
    this.mark();
    this.show();
    this.said.textContent = text(favourite ? "unmarked" : "marked");
  }

  async keep() {
    const { epoch, strength, clip } = this.current();
    const chosen = this.loader.value === "" ? null : this.loaders[Number(this.loader.value)];
    const { lora } = await ask("loras/keep", epoch.mean ? { mean: epoch.mean, name: this.name.value } : { lora: epoch.file, name: this.name.value });
    await app.refreshComboInNodes?.(); // every loader lists it without a restart
    if (chosen) {
      for (const [name, value] of [["lora_name", lora], ["strength_model", strength], ["strength_clip", clip]]) {
        const widget = widgetOf(chosen, name);
        if (!widget) continue;
        widget.value = value;
        widget.callback?.(value, app.canvas, chosen);
      }
      chosen.setDirtyCanvas?.(true, true);
    }
    this.said.textContent = text(chosen ? "keptInto" : "keptOnly", { lora, strength: number(strength), title: chosen?.title ?? "" });
  }

  /** Arrows walk over the cells, F marks a favourite, C compares. */
  key(event) {
    const at = event.target.dataset?.at;
    if (!at || event.ctrlKey || event.metaKey || event.altKey) return;
    const [column, row] = at.split(",").map(Number);
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      const next = this.table.querySelector(`[data-at="${column + step[0]},${row + step[1]}"]`);
      if (next) next.focus();
      event.preventDefault();
    } else if (event.key === "c" || event.key === "C") {
      this.choose(event.target.dataset.place, true);
    } else if (event.key === "f" || event.key === "F") {
      if (this.chosen.at(-1) !== event.target.dataset.place) this.choose(event.target.dataset.place, false);
      if (this.current()?.cell) this.tried(() => this.favour());
    }
  }
}

/** The page that a node has shown last: its pictures' folder and name. */
function pageOf(node) {
  const image = outputOf(node, app.nodeOutputs, root())?.images?.[0];
  const parts = image?.subfolder?.split("/") ?? [];
  const page = image?.filename?.match(/^grid-[0-9a-f]{12}/)?.[0];
  return page && parts.at(-1) === "grids" ? { run: parts.at(-2), page } : null;
}

app.registerExtension({
  name: "lora-atelier.grid",
  nodeCreated(node) {
    if (node.comfyClass !== "EpochWeightGrid") return;
    const button = node.addWidget("button", "grid_desk", null, () => new Gallery(pageOf(node)), { serialize: false });
    button.label = text("openGrid");
    button.serialize = false;
  },
});
