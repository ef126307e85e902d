// Room on the canvas: a node whose panel grows by itself covers nothing; what lies below its head goes down.
const GAP = 20; // pixels between a node and what had to go down
const TITLE = 30; // pixels of a node's title, which lies above its place
const SETTLED = [300, 1000, 2000, 4000]; // ms after which a renderer has measured a node, on quick and on busy machines

const top = (node) => node.pos[1] - TITLE;
const bottom = (node) => node.pos[1] + (node.flags?.collapsed ? 0 : node.size[1]);
const isBeside = (one, other) => one.pos[0] + one.size[0] <= other.pos[0] || other.pos[0] + other.size[0] <= one.pos[0];
const isIn = (group, node) =>
  group.pos[0] <= node.pos[0] && node.pos[0] + node.size[0] <= group.pos[0] + group.size[0] &&
  group.pos[1] <= top(node) && node.pos[1] <= group.pos[1] + group.size[1];

/** Moves down what a node covers, and what that would cover in its turn; groups grow with what was in them. */
function clear(graph, node) {
  const holding = new Map([[node, groupsOf(graph, node)]]); // of what covers others: the node and those that were moved
  const heads = new Map([[node, node.pos[1]]]); // where they began before
  const others = (graph.nodes ?? graph._nodes ?? []).filter((other) => other !== node && !other.flags?.pinned).sort((a, b) => top(a) - top(b));
  for (const other of others) {
    const covering = [...holding.keys()].filter((one) => !isBeside(one, other) && top(other) >= heads.get(one) && top(other) < bottom(one));
    if (!covering.length) continue;
    holding.set(other, groupsOf(graph, other));
    heads.set(other, other.pos[1]);
    other.pos = [other.pos[0], Math.max(...covering.map(bottom)) + GAP + TITLE];
  }
  for (const [one, around] of holding) {
    for (const group of around) {
      const least = bottom(one) + GAP - group.pos[1];
      if (group.size[1] < least) group.size = [group.size[0], least];
    }
  }
}

const groupsOf = (graph, node) => (graph.groups ?? graph._groups ?? []).filter((group) => isIn(group, node));

/** To be called when a panel may have made its node grow. */
export function makeRoom(node) {
  let cleared = -Infinity;
  const act = () => {
    if (!node.graph || node.flags?.collapsed || bottom(node) <= cleared) return; // where the person has put others since, they stay
    cleared = bottom(node);
    clear(node.graph, node);
    node.setDirtyCanvas?.(true, true);
  };
  if (!window.LiteGraph?.vueNodesMode) act();
  for (const time of SETTLED) setTimeout(act, time); // the classic canvas may lay a node out anew as well
}
