// The window "Pictures and captions" on a page that is only pretended, with a server that keeps the files. Prints what was seen as JSON.
const page = process.argv[2];

class Element extends EventTarget {
  constructor(tag) {
    super();
    Object.assign(this, { tag, children: [], style: {}, attributes: {}, hidden: false, value: "", scrollTop: 0 });
    this.classList = { toggle() {}, add() {} };
  }

  append(...children) {
    this.children.push(...children);
    for (const child of children) if (child instanceof Element) child.around = this;
  }
  replaceChildren(...children) {
    this.children = [];
    this.append(...children);
  }
  remove() { this.around.children = this.around.children.filter((one) => one !== this); }
  setAttribute(name, value) { this.attributes[name] = value; }
  querySelector() { return null; }
  querySelectorAll() { return []; }
  showModal() {}
  get firstChild() { return this.children[0]; }
  get textContent() { return this.children.map((child) => child.textContent ?? String(child)).join(" "); }
  set textContent(text) { this.children = text ? [text] : []; }
  named(name) { return [...this.children.filter((one) => one instanceof Element)].flatMap((one) => (one.attributes["aria-label"] === name || one.attributes.title === name ? [one] : one.named(name))); }
}
globalThis.document = { addEventListener() {}, head: new Element("head"), body: new Element("body"), createElement: (tag) => new Element(tag), getElementById: () => null };
globalThis.window = { confirm: () => true };
globalThis.location = { href: "http://here/", origin: "http://here" };

const { app } = await import(`${page}/scripts/app.js`);
const { api } = await import(`${page}/scripts/api.js`);
api.apiURL = (path) => path;
await import(`${page}/extensions/lora-atelier/captions.js`);

// The folder: captions by picture; a version is the caption itself.
let folder = { "a.png": "a", "b.png": "b", "c.png": "c" };
const controls = { "b.png": [{ folder: "input/set", picture: "control/b.png" }, { folder: "input/set_control", picture: "b_2.png" }] };
const aside = {};
const asked = [];
let silent = false;
const refuse = (error) => ({ ok: false, status: 400, json: async () => ({ error }) });
const answers = {
  pictures: () => ({
    pictures: Object.entries(folder).map(([picture, caption]) => ({ picture, caption, version: caption, size: [8, 8], bucket: [8, 8], box: [0, 0, 8, 8], repeats: 1, controls: controls[picture] })),
    notes: [],
  }),
  captions: ({ edits }) => {
    const stale = edits.filter(({ picture, version }) => folder[picture] !== version).map(({ picture }) => picture);
    if (stale.length) return `${stale} changed on the disk`;
    const undo = edits.map(({ picture, caption }) => ({ picture, caption: folder[picture], version: caption }));
    for (const { picture, caption } of edits) folder[picture] = caption;
    return { undo, now: edits.map(({ picture, caption }) => ({ picture, caption, version: caption })) };
  },
  "pictures/turn": () => ({}),
  "pictures/remove": ({ pictures: [one] }) => {
    if (!(one in folder)) return `${one} is not there`;
    aside[one] = folder[one];
    delete folder[one];
    return { entry: one };
  },
  "pictures/restore": ({ entry }) => {
    if (!aside[entry]) return "it lies elsewhere";
    folder[entry] = aside[entry];
    delete aside[entry];
    return {};
  },
};
api.fetchApi = async (path, sent = {}) => {
  const name = path.replace("/lora_atelier/", "");
  asked.push(name);
  await new Promise((done) => setTimeout(done, 2));
  if (silent) return refuse("the server is away");
  const values = answers[name](JSON.parse(sent.body ?? "{}"));
  return typeof values === "string" ? refuse(values) : { ok: true, json: async () => values };
};

const widgets = [{ name: "folder", value: "input/set", options: { values: [] } }, { name: "caption_extension", value: ".txt" }];
const node = { comfyClass: "LoadDataset", widgets, addWidget: (_kind, name, _value, callback) => ({ name, callback }) };
let button;
node.addWidget = (_kind, name, _value, callback) => (button = { name, callback });
for (const one of app.extensions.filter(({ name }) => name === "lora-atelier.captions")) one.nodeCreated(node);
const pause = () => new Promise((done) => setTimeout(done, 60));
button.callback();
await pause();
const dialog = document.body.children.at(-1);
const list = dialog.named("pictures")[0];
const words = (picture) => dialog.named("captionOf").find((_, i) => list.children[i].textContent.includes(picture));
const rows = () => Object.fromEntries(list.children.map((item, i) => [Object.keys(folder).find((one) => item.textContent.includes(one)) ?? "gone", dialog.named("captionOf")[i].value]));
const type = (picture, value) => {
  words(picture).value = value;
  words(picture).dispatchEvent(new Event("change"));
};
const tool = (picture, key) => list.children.find((item) => item.textContent.includes(picture)).named(`${key}Help`)[0];
const press = (key) => dialog.named(`${key}Help`)[0].dispatchEvent(new Event("click"));
const said = () => dialog.children.at(-1).children[0].textContent;
const seen = {};
seen.first = rows();
const kinds = (item, tag) => [...(item.tag === tag ? [item] : []), ...item.children.filter((one) => one instanceof Element).flatMap((one) => kinds(one, tag))];
seen.controls = list.children.map((item) => kinds(item, "figure").map((one) => [one.textContent.trim(), one.attributes.title, kinds(one, "img")[0].attributes.src]));

// Two clicks at once, with something not saved.
type("b.png", "b, mine");
tool("a.png", "takeOut").dispatchEvent(new Event("click"));
tool("a.png", "takeOut").dispatchEvent(new Event("click"));
tool("c.png", "turnLeft").dispatchEvent(new Event("click"));
asked.length = 0;
await pause();
seen.asked = [...asked];
seen.afterTwo = rows();
press("undo"); // the turn
press("undo"); // what was taken out
await pause();
seen.undone = rows();

// A folder that cannot be read for a while.
silent = true;
tool("c.png", "turnRight").dispatchEvent(new Event("click"));
await pause();
seen.away = [rows(), said()];
silent = false;

// Somebody else writes what is not saved here.
folder["b.png"] = "b, theirs";
tool("c.png", "turnRight").dispatchEvent(new Event("click"));
await pause();
press("saveCaptions");
await pause();
seen.refused = [said(), folder["b.png"], rows()["b.png"]];
press("undo"); // the turn
press("undo"); // what was written
tool("c.png", "turnRight").dispatchEvent(new Event("click"));
await pause();
seen.theirs = rows()["b.png"];

// Saved, then written by somebody else: taking it back is refused once, and bars nothing.
type("c.png", "c, mine");
press("saveCaptions");
await pause();
folder["c.png"] = "c, theirs";
press("undo");
await pause();
seen.kept = [said(), folder["c.png"]];
tool("a.png", "takeOut").dispatchEvent(new Event("click"));
await pause();
delete aside["a.png"]; // moved elsewhere by hand
press("undo");
await pause();
seen.stuck = said();
asked.length = 0;
press("undo"); // what was typed before it was saved
press("undo"); // the turn before that
await pause();
seen.next = asked[0] ?? "";
// Two choices of one name, into a sub-folder that the node doesn't read, and one that it does.
const { Adding } = await import(`${page}/extensions/lora-atelier/upload.js`);
answers["pictures/add"] = ({ folder, files, names }) => (names ? { left: [] } : { folder, new: files.map(({ name, batch }) => [name, `${batch}/${name}`]), there: [], left: [] });
seen.into = [];
for (const inner of ["input/set/more", "input/set/10_more", "input/set"]) {
  const adding = new Adding(node, [{ name: "one/1.png", held: { filename: "1.png" } }]);
  adding.take([{ name: "two/1.png", held: { filename: "2.png" } }]);
  adding.folder.value = inner;
  await adding.send();
  seen.into.push([adding.said.textContent.includes("notRead"), adding.done.textContent.includes("1.png → 1/1.png 1.png → 2/1.png"), widgets[0].value]);
}
console.log(JSON.stringify(seen));
