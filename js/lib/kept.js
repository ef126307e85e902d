// What nodes have said, kept for this tab of the browser, so that it is there again when the page is loaded anew.
const NAME = "lora-atelier.told";
const MOST = 40; // nodes that are remembered
const LONGEST = 200_000; // letters of what one of them said

const rootOf = (node) => node.graph.rootGraph ?? node.graph;
const placeOf = (node) => [node.graph === rootOf(node) ? "" : node.graph.id, node.id, node.comfyClass].join("/");

const valuesOf = (node) => JSON.stringify((node.widgets ?? []).filter((widget) => widget.serialize !== false).map(({ name, value }) => [name, value]));

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
  try {
    sessionStorage.setItem(NAME, JSON.stringify(entries));
  } catch {
    // without room nothing is remembered
  }
}

/** What a node has put out before, or nothing. A graph that was never saved may get another name when the page is loaded anew: there
 * the node is known by its place and its values. */
export function kept(node) {
  if (!node.graph) return undefined;
  const [graph, place, values] = [rootOf(node).id, placeOf(node), valuesOf(node)];
  const there = all().filter((one) => one.place === place).reverse();
  return (there.find((one) => one.graph === graph) ?? there.find((one) => one.values === values))?.output;
}
