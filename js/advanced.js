// The nodes mark what is rarely needed as advanced. Here that holds on the classic canvas as well ("Show Advanced" in a node's
// menu), in groups where there is much of it, and a node is as high as what shows.
import { app } from "../../scripts/app.js";
import { Groups } from "./lib/groups.js";

const EVERY = 1000; // ms between two looks at what has changed in groups
const groups = new Map();
setInterval(() => groups.forEach((found) => found.node.showAdvanced && found.retitle()), EVERY);

/** Calls back when the node shows or hides its advanced widgets; the host itself may watch the property too. */
function onToggle(node, act) {
  const before = Object.getOwnPropertyDescriptor(node, "showAdvanced");
  let own = before?.value;
  const get = before?.get ?? (() => own);
  const set = before?.set ?? ((value) => (own = value));
  Object.defineProperty(node, "showAdvanced", {
    configurable: true, enumerable: before?.enumerable ?? true, get: () => get.call(node),
    set(value) {
      if (Boolean(value) === Boolean(get.call(node))) set.call(node, value);
      else act(() => set.call(node, value));
    },
  });
}

app.registerExtension({
  name: "lora-atelier.advanced",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!(nodeData.category ?? "").startsWith("LoRA Atelier")) return;
    const specs = { ...nodeData.input?.required, ...nodeData.input?.optional };
    const prototype = nodeType.prototype;
    const { onNodeCreated: created, onAdded: added, onRemoved: removed, onSerialize: serialized, onConnectionsChange: connected, configure } = prototype;
    const stored = new WeakSet(); // nodes whose size is theirs already
    const loading = new WeakSet();
    Object.assign(prototype, {
      onNodeCreated(...args) {
        const answer = created?.apply(this, args);
        const found = new Groups(this, specs);
        groups.set(this, found);
        onToggle(this, (act) => (loading.has(this) ? act() : found.refit(act)));
        return answer;
      },
      onAdded(...args) {
        const answer = added?.apply(this, args);
        if (!stored.has(this)) this.setSize([this.size[0], this.computeSize()[1]]);
        stored.add(this);
        return answer;
      },
      configure(...args) {
        stored.add(this);
        loading.add(this);
        try {
          const load = () => configure.apply(this, args);
          return groups.has(this) ? groups.get(this).asStored(load) : load();
        } finally {
          loading.delete(this);
        }
      },
      onSerialize(data, ...args) {
        const answer = serialized?.call(this, data, ...args);
        if (data.widgets_values && groups.has(this)) data.widgets_values = groups.get(this).values();
        return answer;
      },
      onConnectionsChange(...args) {
        const answer = connected?.apply(this, args);
        groups.get(this)?.arrange();
        return answer;
      },
      onRemoved(...args) {
        groups.delete(this);
        return removed?.apply(this, args);
      },
    });
  },
});
