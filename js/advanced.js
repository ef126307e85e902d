// The nodes mark what is rarely needed as advanced. The classic canvas does not carry that mark over to the widgets; here it is,
// so that they are folded away there too ("Show Advanced" in the node's menu).
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "lora-atelier.advanced",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!(nodeData.category ?? "").startsWith("LoRA Atelier")) return;
    const specs = { ...nodeData.input?.required, ...nodeData.input?.optional };
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...args) {
      const answer = created?.apply(this, args);
      for (const widget of this.widgets ?? []) {
        if (!specs[widget.name]?.[1]?.advanced) continue;
        widget.advanced = true;
        // Only what is hidden leaves no gap.
        Object.defineProperty(widget, "hidden", { configurable: true, get: () => !this.showAdvanced, set() {} });
      }
      return answer;
    };
  },
});
