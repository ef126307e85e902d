// Choosing a preset in Configure LoRA fills the node's other widgets; their values are what the workflow keeps.
import { app } from "../../scripts/app.js";

const presets = fetch(new URL("./presets.json", import.meta.url)).then((answer) => answer.json());

app.registerExtension({
  name: "lora-atelier.presets",
  async nodeCreated(node) {
    if (node.comfyClass !== "ConfigureLoRA") return;
    const chooser = node.widgets?.find((widget) => widget.name === "preset");
    if (!chooser) return;
    const before = chooser.callback;
    chooser.callback = async function (value, ...others) {
      before?.call(this, value, ...others);
      const values = (await presets)[value] ?? {};
      for (const widget of node.widgets) {
        if (widget.name in values) widget.value = values[widget.name];
      }
      node.setDirtyCanvas?.(true, true);
    };
  },
});
