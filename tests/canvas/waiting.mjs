// Whose a node that waits is, and what becomes of a question that leaves the queue, on a page that is only pretended.
const page = process.argv[2];
globalThis.document = { head: { append() {} }, getElementById: () => ({}) };
const { app } = await import(`${page}/scripts/app.js`);
const { api } = await import(`${page}/scripts/api.js`);
const listening = new Map();
api.addEventListener = (name, act) => listening.set(name, [...(listening.get(name) ?? []), act]);
api.removeEventListener = (name, act) => listening.set(name, listening.get(name).filter((one) => one !== act));
const tell = (type, detail) => (listening.get(type) ?? []).forEach((act) => act({ type, detail }));
const { nodeOf } = await import(`${page}/extensions/lora-atelier/lib/waiting.js`);
const { again } = await import(`${page}/extensions/lora-atelier/lib/again.js`);
const pause = () => new Promise((done) => setTimeout(done, 10));

const graph = { id: "mine", links: { 1: { origin_id: 1, origin_slot: 0 } }, getNodeById: (id) => graph.nodes.find((node) => node.id === id) };
const dataset = { id: 1, type: "LoadDataset", comfyClass: "LoadDataset", graph, mode: 0, inputs: [] };
const captioner = { id: 2, type: "AutoCaption", comfyClass: "AutoCaption", graph, mode: 0, inputs: [{ name: "dataset", link: 1 }] };
graph.nodes = [dataset, captioner];
app.rootGraph = graph;
const seen = {};
const same = ["1 LoadDataset", "2 AutoCaption"];
const runs = [
  { id: "mine", nodes: [...same, "3 New"] }, { id: "other", nodes: [...same, "3 New"] }, { id: "", nodes: [] }, // the second has a node 2, too
  { id: "before a reload", nodes: same }, { id: "other", nodes: ["1 LoadDataset", "2 AutoCaption "] },
];
seen.here = runs.map((workflow) => nodeOf({ node: "2", workflow })?.id ?? null);

let [queue, history, waiting, asked] = [[], {}, [], []];
api.fetchApi = async (path, sent = {}) => {
  const answers = { "/lora_atelier/captions/waiting": { waiting }, "/queue": { queue_running: [], queue_pending: queue } };
  if (path.endsWith("/again")) asked.push(JSON.parse(sent.body));
  return { ok: true, json: async () => (path.startsWith("/history/") ? history : (answers[path] ?? { caption: "a cat" })) };
};
app.graphToPrompt = async () => ({ output: { 2: { class_type: "AutoCaption", inputs: {} } }, workflow: {} });
let number = 0;
const prompts = [];
api.queuePrompt = async (_at, prompt) => {
  prompts.push(prompt.output[2].inputs.only);
  queue = [[0, `job${++number}`]];
  return { prompt_id: `job${number}` };
};
const ask = () => again(dataset, "input/cats", "sub/1.png").then((words) => words, (error) => `! ${error.message}`);
const listeners = () => [...listening.values()].flat().length;
const before = listeners();

let answer = ask();
await pause();
tell("status", {}); // it is still in the queue
await pause();
tell("executed", { prompt_id: "job1", node: "2", output: { asked: [["1.png", "a dog"]] } });
tell("execution_success", { prompt_id: "job1" });
seen.answered = await answer;

answer = ask();
await pause();
queue = [];
tell("status", {});
seen.deleted = await answer;

answer = ask();
await pause();
[queue, history] = [[], { job3: { outputs: { 2: { asked: [["1.png", "a bird"]] } } } }];
tell("reconnected", {});
seen.missed = await answer;
seen.listeners = listeners() - before;
seen.prompts = prompts;

waiting = [{ node: "2", workflow: runs[1] }, { node: "2", workflow: runs[0] }];
seen.paused = await ask();
seen.asked = asked;
console.log(JSON.stringify(seen));
