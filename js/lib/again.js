// Asks the Auto Caption node behind a Load Dataset for the caption of one picture, through ComfyUI's queue: with its own settings, its
// captioner and whatever is wired into it. Nothing is written; the words come back.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { root } from "./dom.js";
import { allNodes, before, inputOf, nodeAt } from "./graph.js";
import { ask } from "./server.js";
import { text } from "./text.js";
import { nodeOf } from "./waiting.js";

const LOST = ["status", "reconnected"];
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
const jobs = new Set(); // that were queued here
let unanswered = 0; // questions of which the queue has not said yet which job they are

/** Whether what was executed is the answer to a question about one picture, which is no news of the node. */
export const isAnswer = ({ prompt_id: job, output }) => Boolean(output?.asked) && (jobs.has(job) || unanswered > 0);

/** The Auto Caption nodes that get the pictures of a Load Dataset. */
function captionersOf(dataset) {
  const gets = (node) => [...before(node, [inputOf(node, "dataset")].filter(Boolean), root())].includes(dataset);
  return allNodes(root()).filter((node) => node.comfyClass === "AutoCaption" && gets(node));
}

/** A prompt without all that isn't in front of the node with this id. */
function upTo(prompt, id, kept = {}) {
  if (id in kept || !(id in prompt)) return kept;
  kept[id] = prompt[id];
  for (const value of Object.values(prompt[id].inputs)) if (Array.isArray(value) && value.length === 2) upTo(prompt, String(value[0]), kept);
  return kept;
}

/** The caption that the node would write for the picture now. `dataset`: a Load Dataset node; `picture`: its path below the folder. */
export async function again(dataset, folder, picture) {
  const [captioner] = captionersOf(dataset);
  if (!captioner) throw new Error(text("noCaptioner"));
  const only = `${folder}/${picture}`;
  const { waiting } = await ask("captions/waiting");
  const waits = waiting.find((one) => nodeOf(one) === captioner);
  if (waits) return (await ask("captions/again", { node: waits.node, picture: only })).caption; // the queue waits for it
  const { output, workflow } = await app.graphToPrompt();
  const id = Object.keys(output).find((one) => nodeAt(root(), one) === captioner);
  if (!id) throw new Error(text("noCaptioner")); // it is bypassed or muted
  const prompt = structuredClone(upTo(output, id));
  const { inputs } = prompt[id];
  const mode = inputs.mode === "append" ? "append" : "overwrite";
  Object.assign(inputs, { mode, only, dry_run: true, pause: false, regularisation: true });
  return run({ output: prompt, workflow }, id, picture);
}

/** Whether the host still knows of a prompt that hasn't ended: whether it is in the queue. */
async function isQueued(job) {
  const queue = await (await api.fetchApi("/queue")).json();
  return [...queue.queue_running, ...queue.queue_pending].some(([, id]) => id === job);
}

async function words(job, id) {
  const history = await (await api.fetchApi(`/history/${job}`)).json();
  return history[job] && (history[job].outputs?.[id]?.asked?.[0]?.[1] ?? "");
}

function run(prompt, id, picture) {
  return new Promise((resolve, reject) => {
    let [job, found, heard] = [null, "", []];
    const end = (act) => {
      for (const name of ["executed", ...ENDS]) api.removeEventListener(name, hear);
      for (const name of LOST) api.removeEventListener(name, look);
      act();
    };
    const hear = (event) => (job ? take(event) : heard.push(event)); // the answer may be quicker than the queue's
    const take = ({ type, detail }) => {
      if (detail.prompt_id !== job) return;
      if (type === "executed" && detail.node === id) found = detail.output?.asked?.[0]?.[1] ?? found;
      if (!ENDS.includes(type)) return;
      if (type === "execution_success" && found) end(() => resolve(found));
      else end(() => reject(new Error(type === "execution_success" ? text("noWords", { picture }) : (detail.exception_message ?? text("interruptedHere")))));
    };
    // Nobody tells of a prompt that was deleted from the queue, or that went with the server.
    const look = async () => {
      if (!job || (await isQueued(job).catch(() => true))) return;
      const said = await words(job, id).catch(() => "");
      end(() => (said ? resolve(said) : reject(new Error(text(said === "" ? "noWords" : "leftQueue", { picture })))));
    };
    for (const name of ["executed", ...ENDS]) api.addEventListener(name, hear);
    for (const name of LOST) api.addEventListener(name, look);
    unanswered += 1;
    api.queuePrompt(-1, prompt).finally(() => (unanswered -= 1)).then((answer) => {
      job = answer.prompt_id;
      jobs.add(job);
      heard.forEach(take);
    }, (error) => end(() => reject(new Error(reasonOf(error.response) ?? error.message))));
  });
}

/** What the host says of a prompt that it refuses. */
const reasonOf = (answer) => Object.values(answer?.node_errors ?? {})[0]?.errors?.[0]?.details || answer?.error?.message;
