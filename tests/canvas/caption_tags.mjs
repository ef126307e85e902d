// The window "Pictures and captions" and its list of tags, on a page that is only pretended. Prints what was seen as JSON.
//   arguments: address of the folder that stands for the page's root; a file with captions that are to be parted.
import { readFileSync } from "node:fs";

const top = process.argv[2];

class Element extends EventTarget {
  constructor(tag) {
    super();
    Object.assign(this, { tag, children: [], style: {}, dataset: {}, attributes: {}, hidden: false, value: "", scrollTop: 0, shown: false });
  }

  append(...children) { this.children.push(...children); }
  replaceChildren(...children) {
    if (this.children.includes(document.activeElement)) document.activeElement = document.body; // what is taken out loses the keyboard
    Object.assign(this, { children, scrollTop: 0 });
  }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  get classList() { return { add() {}, toggle() {} }; }
  get textContent() { return this.children.map((child) => child.textContent ?? String(child)).join(" "); }
  set textContent(text) { this.children = text ? [text] : []; }
  focus() { document.activeElement = this; }
  remove() { this.gone = true; }
  showModal() { this.shown = true; }
  close() {
    this.shown = false;
    this.dispatchEvent(new Event("close"));
  }
}

globalThis.document = Object.assign(new EventTarget(), {
  head: new Element("head"), body: new Element("body"), getElementById: () => null, createElement: (tag) => new Element(tag),
});
let may = false;
const questions = [];
globalThis.window = { confirm: (sentence) => { questions.push(sentence); return may; } };

const { app } = await import(`${top}/scripts/app.js`);
const { api } = await import(`${top}/scripts/api.js`);
const { parts, tagsOf } = await import(`${top}/extensions/lora-atelier/lib/caption_filter.js`);
const seen = { parts: JSON.parse(readFileSync(process.argv[3], "utf8")).map(parts), lines: tagsOf("a, b\nb，c") };

await import(`${top}/extensions/lora-atelier/captions.js`);
const pictures = [["1.png", "cat, red"], ["2.png", "cat"]].map(([picture, caption]) => ({
  picture, caption, version: "1", fallback: "", size: [8, 8], bucket: [8, 8], box: [0, 0, 8, 8], repeats: 1,
}));
api.apiURL = (path) => path;
api.answer = async (path) => (path.endsWith("pictures") ? { pictures, notes: [] } : {});
const node = { comfyClass: "LoadDataset", widgets: [{ name: "folder", value: "input/cats" }], addWidget: (...given) => ({ press: given[3] }) };
const pause = () => new Promise((done) => setTimeout(done, 5));
let press;
node.addWidget = (...given) => { press = given[3]; return {}; };
app.extensions.find((one) => one.name === "lora-atelier.captions").nodeCreated(node);
press();
await pause();

const dialog = document.body.children.at(-1);
const all = (at = dialog) => [at, ...at.children.filter((child) => child instanceof Element).flatMap((child) => all(child))];
const [words] = all().filter((one) => one.tag === "textarea");
const button = (name) => all().find((one) => one.tag === "button" && one.textContent === name);
const entries = () => all().find((one) => one.attributes.class === "atelier-tags").children;
const tags = () => entries().map((one) => `${one.textContent}${one.attributes["aria-pressed"] === "true" ? "!" : ""}`);
const input = (text) => { words.value = text; words.dispatchEvent(new Event("input")); };
const type = (text) => { input(text); words.dispatchEvent(new Event("change")); };
const click = async (one) => { one.dispatchEvent(new Event("click")); await pause(); };

// What was typed can be taken back, whatever the caption was like on the way.
type("cat, red, one");
input("cat, red");
seen.typing = tags();
type("cat, red, two");
seen.typed = tags();
seen.undone = [];
for (let i = 0; i < 2; i++) {
  await click(button("undo"));
  seen.undone.push(words.value);
}
seen.nothing = button("undo").disabled;

// A tag that is chosen stays where the keyboard is, and can be released when no caption has it any more.
const red = entries()[1];
red.focus();
await click(red);
seen.chosen = [tags(), document.activeElement === red];
type("cat");
seen.without = [tags(), document.activeElement === entries()[0]];
await click(entries()[0]);
seen.released = tags();

// Escape asks as often as it is pressed; a window that the browser has closed by itself is there again.
const escape = (target = document) => target.dispatchEvent(Object.assign(new Event("keydown", { cancelable: true }), { key: "Escape" }));
seen.escaped = [escape(), escape(), questions.length, dialog.shown];
dialog.close();
seen.reopened = [questions.length, dialog.shown];
may = true;
escape();
seen.closed = [questions.length, dialog.shown, dialog.gone, escape()];
console.log(JSON.stringify(seen));
