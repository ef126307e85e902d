// Nodes that wait for a person, as the server lists them, and where they are on this page.
import { root } from "./dom.js";
import { nodeAt } from "./graph.js";

/** The Auto Caption node that waits, which a run calls "3", or "5:3" inside a sub-graph; undefined if another workflow is open. */
export function nodeOf({ node, workflow }) {
  const page = root();
  if (page?.id && workflow !== page.id) return undefined; // it may have a node of this number as well
  const found = nodeAt(page, node);
  return found?.comfyClass === "AutoCaption" ? found : undefined;
}
