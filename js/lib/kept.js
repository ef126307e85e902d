// What nodes have said, kept for this tab of the browser, so that it is there again when the page is loaded anew.
import { before } from "./graph.js";

const NAME = "lora-atelier.told";
const MOST = 40; // nodes that are remembered
const LONGEST = 200_000; // letters of what one of them said

const ABOUT = { LoadDataset: "folder", ConfigureLoRA: "name" }; // the widgets that say what a run is about

const rootOf = (node) => node.graph.rootGraph ?? node.graph;
const placeOf = (node) => [node.graph === rootOf(node) ? "" : node.graph.id, node.id, node.comfyClass].join("/");

/** What a node is set to, and which folders and runs it is about by the nodes in front of it. */
function valuesOf(node) {
  const values = (one, wanted) => (one.widgets ?? []).filter((widget) => widget.serialize !== false && wanted(widget)).map(({ name, value }) => [name, value]);
  const front = [...before(node, node.inputs ?? [], rootOf(node))];
  return JSON.stringify([values(node, () => true), front.flatMap((one) => values(one, ({ name }) => ABOUT[one.comfyClass] === name))]);
}

function all() {
  try {
    return JSON.parse(sessionStorage.getItem(NAME)) ?? [];
  } catch {
    return []; // none, no storage, or not ours
  }
}

/** Remembers what a node has put out; the newest stay. */
export function keep(node, output) {
  const { told, images, thumbnails } = output ?? {};
  if (!told || !node.graph) return;
  const [graph, place] = [rootOf(node).id, placeOf(node)];
  const others = all().filter((one) => one.graph !== graph || one.place !== place);
  const entry = JSON.stringify({ graph, place, values: valuesOf(node), output: { told, images, thumbnails } });
  const entries = entry.length > LONGEST ? others : [...others, JSON.parse(entry)].slice(-MOST);
  do {
    try {
      sessionStorage.setItem(NAME, JSON.stringify(entries));
      return;
    } catch {
      // there is no room: the oldest goes
    }
  } while (entries.shift());
}

/** What a node with these values has put out before, or nothing. A graph that was never saved may get another name when the page is
 * loaded anew, and all graphs that were made from one template have its name: a node is known by its place and its values. */
export function kept(node) {
  if (!node.graph) return undefined;
  const [graph, place, values] = [rootOf(node).id, placeOf(node), valuesOf(node)];
  const there = all().filter((one) => one.place === place && one.values === values).reverse();
  return (there.find((one) => one.graph === graph) ?? there[0])?.output;
}
