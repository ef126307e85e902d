// Nodes that wait for a person, as the server lists them, and where they are on this page.
import { root } from "./dom.js";
import { nodeAt } from "./graph.js";

/** Whether a run came from the workflow that is open. One that was never saved has another id after a reload, but the same nodes. */
function isOpen({ id, nodes }, page) {
  const own = (page?.nodes ?? page?._nodes ?? []).map((node) => `${node.id} ${node.type}`);
  return (id && id === page?.id) || (nodes.length === own.length && own.every((one) => nodes.includes(one)));
}

/** The Auto Caption node that waits; undefined if another workflow is open, which may have a node of this number as well. */
export function nodeOf({ node, workflow }) {
  const page = root();
  const found = isOpen(workflow, page) ? nodeAt(page, node) : null;
  return found?.comfyClass === "AutoCaption" ? found : undefined;
}
