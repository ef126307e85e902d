// Choosing a preset in Configure LoRA fills the node's other widgets; their values are what the workflow keeps.
import { app } from "../../scripts/app.js";
import { root } from "./lib/dom.js";
import { loaderOf, trainersOf } from "./lib/graph.js";
import { ask } from "./lib/server.js";
import { text } from "./lib/text.js";
import { showFamily } from "./recipe.js";

const SUITED = "suited to the model";
const presets = fetch(new URL("./presets.json", import.meta.url)).then((answer) => answer.json());

/** The name of the preset for the model that is trained; the node says which family was found. */
async function suited(node) {
  showFamily(node, text("asking"));
  try {
    const loaders = trainersOf(node, root()).map((train) => loaderOf(train, root()));
    const { preset, note } = await ask("family", loaders.find(Boolean) ?? {});
    showFamily(node, note);
    return preset;
  } catch (error) {
    showFamily(node, text("serverSilent", { why: error.message }));
    return null;
  }
}

app.registerExtension({
  name: "lora-atelier.presets",
  async nodeCreated(node) {
    if (node.comfyClass !== "ConfigureLoRA") return;
    const chooser = node.widgets?.find((widget) => widget.name === "preset");
    if (!chooser) return;
    const before = chooser.callback;
    chooser.callback = async function (value, ...others) {
      before?.call(this, value, ...others);
      if (value !== SUITED) showFamily(node, "");
      const chosen = value === SUITED ? await suited(node) : value;
      if (chooser.value !== value) return; // another one was chosen meanwhile
      const values = (await presets)[chosen] ?? {};
      for (const widget of node.widgets) {
        if (widget.name in values) widget.value = values[widget.name];
      }
      node.setDirtyCanvas?.(true, true);
    };
  },
});
