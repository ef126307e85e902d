// The panels' modules on a page that is only pretended: elements that hold what is put into them, a graph, a server.
//   argument: address of the folder that stands for the page's root, in which the modules lie as the host serves them.
const top = process.argv[2];

class Element extends EventTarget {
  constructor(tag) {
    super();
    Object.assign(this, { tag, children: [], style: {}, dataset: {}, attributes: {}, offsetHeight: 15, hidden: false });
  }

  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  get classList() { return { add: (name) => { this.attributes.class = `${this.attributes.class ?? ""} ${name}`; } }; }
  get childElementCount() { return this.children.filter((child) => child instanceof Element).length; }
  get textContent() { return this.children.map((child) => child.textContent ?? String(child)).join(" "); }
  set textContent(text) { this.children = text ? [text] : []; }
  closest(wanted) { return wanted.split(", ").some((one) => ` ${this.attributes.class} `.includes(` ${one.slice(1)} `)) ? this : null; }
}

globalThis.document = {
  hidden: false, head: new Element("head"), body: new Element("body"), getElementById: () => null,
  createElement: (tag) => new Element(tag), createElementNS: (_, tag) => new Element(tag),
};
globalThis.window = {};
globalThis.ResizeObserver = class { observe() {} disconnect() {} };
const looks = [];
globalThis.setInterval = (look) => looks.push(look);

const { app } = await import(`${top}/scripts/app.js`);
const { api } = await import(`${top}/scripts/api.js`);
const listeners = new EventTarget(); // what the server sends
api.addEventListener = (...given) => listeners.addEventListener(...given);
api.removeEventListener = (...given) => listeners.removeEventListener(...given);
const send = (type, detail) => listeners.dispatchEvent(Object.assign(new Event(type), { detail }));
let room = 1e6; // letters that the browser keeps
const stored = new Map();
globalThis.sessionStorage = {
  getItem: (name) => stored.get(name) ?? null,
  setItem: (name, value) => {
    if (value.length > room) throw new Error("full");
    stored.set(name, value);
  },
};
await import(`${top}/extensions/lora-atelier/recipe.js`);
const [told, recipe] = ["told", "recipe"].map((name) => app.extensions.find((one) => one.name === `lora-atelier.${name}`));
const zoomed = [];
app.canvas = { processMouseWheel: (event) => zoomed.push(event.type) };

// The graph: Configure LoRA -> Train LoRA -> two grids.
const graph = { nodes: [], links: {}, getNodeById: (id) => graph.nodes.find((node) => node.id === id) };
app.rootGraph = graph;
class Node {
  constructor(id, type, widgets = {}, inputs = {}) {
    Object.assign(this, { id, comfyClass: type, type, graph, mode: 0, size: [200, 100], pos: [0, 200 * id], inputs: [] });
    this.widgets = Object.entries(widgets).map(([name, value]) => ({ name, value }));
    for (const [name, from] of Object.entries(inputs)) {
      graph.links[`${from}>${id}`] = { origin_id: from, origin_slot: 0 };
      this.inputs.push({ name, type: name, link: `${from}>${id}` });
    }
    graph.nodes.push(this);
  }

  addDOMWidget(name, _type, element) {
    const widget = { name, element };
    this.widgets.push(widget);
    return widget;
  }

  computeSize() { return [...this.size]; }
  setSize(size) { this.size = size; }
  onNodeCreated() {}
  onRemoved() {}
  onExecuted() {}
}
const typed = (name) => {
  class Typed extends Node {}
  for (const extension of [told, recipe]) extension.beforeRegisterNodeDef(Typed, { name, input: { required: { rank: [], which_epochs: [] } } });
  return Typed;
};
const [Configure, Grid, Folder] = ["ConfigureLoRA", "EpochWeightGrid", "LoadDataset"].map(typed);
const config = new Configure(1, "ConfigureLoRA", { rank: 8 });
config.onNodeCreated();
new Node(2, "TrainLoRA", { preview_steps: 0 }, { config: 1 });
const grids = [3, 4].map((id) => new Grid(id, "EpochWeightGrid", { which_epochs: `${id}0` }, { epochs: 2 }));

const asked = [];
api.answer = (path, body) => new Promise((resolve) => asked.push({ body: body && JSON.parse(body), answer: (values) => resolve(values) }));
const pause = () => new Promise((resolve) => setTimeout(resolve, 5));
/** Two looks, after which what is settled is asked. */
const look = async () => {
  for (let i = 0; i < 2; i++) looks.forEach((one) => one());
  await pause();
};
const answer = async (question, grids) => {
  question.answer({ warnings: grids.flat(), grids, notes: [], sentence: "" });
  await pause();
};
const said = () => grids.map((grid) => grid.widgets.find((widget) => widget.name === "told")?.element.textContent.trim() ?? "");
const seen = {};

await look();
await answer(asked[0], [["none of 30"], []]);
seen.first = said();
grids[0].widgets[0].value = "31";
await look();
grids[0].mode = 4; // bypassed before the answer comes
await answer(asked[1], [["none of 31"], ["none of 40"]]);
seen.meanwhile = said();
await look();
seen.questions = asked.map(({ body }) => body.grids.map((grid) => grid.which_epochs));
await answer(asked[2], [["none of 40"]]);
seen.bypassed = said();
grids[0].mode = 0;
grids[1].inputs = []; // unplugged
grids[0].widgets[0].value = "40"; // the same question about another grid
await look();
await answer(asked[3], [["none of 40"]]);
seen.swapped = said();
config.graph = null;
config.onRemoved();
seen.removed = said();

// What a node said is there again with its tab.
const folder = new Folder(7, "LoadDataset");
told.loadedGraphNode(folder);
const words = () => folder.widgets.find((widget) => widget.name === "told")?.element.textContent.trim() ?? "";
seen.fresh = words();
told.onNodeOutputsUpdated({ 7: { told: [{ counts: ["4 pictures"], warnings: [], notes: [], tables: [] }] }, 9: { images: [] } });
seen.restored = words();
const again = new Folder(8, "LoadDataset");
app.nodeOutputs = { 8: { told: [{ counts: ["5 pictures"], warnings: [], notes: [], tables: [] }] } };
told.loadedGraphNode(again);
seen.loaded = again.widgets.find((widget) => widget.name === "told")?.element.textContent.trim() ?? "";

// What a panel would cover goes down, and what that would cover, and groups grow; what is beside stays.
const { makeRoom } = await import(`${top}/extensions/lora-atelier/lib/room.js`);
const place = (x, y, height) => ({ pos: [x, y], size: [100, height] });
const [grown, below, further, beside, above] = [place(0, 100, 300), place(50, 250, 100), place(0, 400, 50), place(200, 250, 50), place(0, 0, 60)];
const fixed = { ...place(0, 300, 20), flags: { pinned: true } };
const small = { nodes: [grown, below, further, beside, above, fixed], groups: [{ pos: [-10, 60], size: [400, 480] }, { pos: [-10, 600], size: [400, 50] }] };
for (const node of small.nodes) node.graph = small;
makeRoom(grown);
seen.placed = [below, further, beside, above].map((node) => node.pos[1]);
seen.fixed = fixed.pos[1];
seen.around = small.groups.map((group) => group.size[1]);
makeRoom(grown);
seen.twice = [below, further, beside, above].map((node) => node.pos[1]);

// What a job was at goes with it, however it ends.
const at = () => folder.widgets.find((widget) => widget.name === "told").element.children[0].children[0].textContent;
seen.at = ["execution_error", "execution_interrupted", "execution_start"].map((event) => {
  send("lora_atelier.status", { node: "7", line: "reading" });
  const before = at();
  send(event, { prompt_id: "1" });
  return [before, at()];
});

// What is kept of a node is shown again where the node, and what it is about, are set as they were then.
const { keep, kept } = await import(`${top}/extensions/lora-atelier/lib/kept.js`);
const telling = (count) => ({ told: [{ counts: [count] }] });
const captioner = new Node(20, "AutoCaption", { mode: "append" }, { dataset: 21 });
const front = new Node(21, "LoadDataset", { folder: "input/a" });
keep(captioner, telling("3 captions"));
const shown = () => kept(captioner)?.told[0].counts[0] ?? "";
seen.kept = [shown()];
front.widgets[0].value = "input/b";
seen.kept.push(shown());
front.widgets[0].value = "input/a";
captioner.widgets[0].value = "overwrite";
seen.kept.push(shown());
captioner.widgets[0].value = "append";
graph.id = "another name";
seen.kept.push(shown());
room = stored.get("lora-atelier.told").length + 10; // for as many as there are
keep(front, telling("9 pictures"));
seen.full = [shown(), kept(front).told[0].counts[0]];

// The answer to a question about one picture is no news of the node.
const { again: askAgain } = await import(`${top}/extensions/lora-atelier/lib/again.js`);
const looking = api.answer;
api.answer = async () => ({ waiting: [] });
app.graphToPrompt = async () => ({ workflow: {}, output: { 20: { class_type: "AutoCaption", inputs: {} } } });
let queued;
api.queuePrompt = () => new Promise((done) => { queued = () => done({ prompt_id: "2" }); });
const asking = askAgain(front, "input/a", "1.png");
await pause();
const done = (job) => {
  const output = { ...telling("1 caption"), asked: [["1.png", "a cat"]] };
  send("executed", { prompt_id: job, node: "20", output });
  return Boolean(output.told);
};
seen.news = [done("2")];
queued();
await pause();
seen.news.push(done("2"), done("3"));
send("execution_success", { prompt_id: "2" });
seen.news.push(await asking);
api.answer = looking;

// A chart whose storage holds what is not ours, or gives and takes nothing, is as usual.
const { Chart } = await import(`${top}/extensions/lora-atelier/lib/chart.js`);
seen.charts = ["{", "null", "7", '{"level": 99}', '{"level": 0, "log": true}', null].map((stored) => {
  globalThis.localStorage = { getItem: () => { if (stored === null) throw new Error("no storage"); return stored; }, setItem() { throw new Error("no room"); } };
  const chart = new Chart();
  chart.set();
  return [Number(chart.slider.value), chart.log.checked === true];
});

// The wheel is the canvas's until something scrolls.
const { element } = folder.widgets.find((widget) => widget.name === "told");
Object.assign(element, { scrollHeight: 100, clientHeight: 100, scrollWidth: 50, clientWidth: 50 });
element.dispatchEvent(new Event("wheel"));
seen.short = zoomed.length;
element.scrollHeight = 200;
element.dispatchEvent(new Event("wheel"));
seen.long = zoomed.length;
console.log(JSON.stringify(seen));
