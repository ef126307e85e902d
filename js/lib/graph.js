// Follows the wires of a graph backwards, through any node and into and out of sub-graphs. Nothing here changes a graph.
const OUTSIDE = -10; // where a sub-graph's inputs seem to come from
const BYPASSED = 4;
const NO_LORA = ["", "None"]; // what their lists have for none
const LOADERS = ["ckpt_name", "unet_name"];
const TEXTS = /^(ckpt_name|clip_name[1-4]?)$/;

function linkOf(graph, id) {
  return id == null ? null : (graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id] ?? null);
}

/** Every node of a graph and of the sub-graphs in it. */
export function allNodes(graph, seen = new Set()) {
  if (!graph || seen.has(graph)) return [];
  seen.add(graph);
  const nodes = graph.nodes ?? graph._nodes ?? [];
  return nodes.flatMap((node) => [node, ...allNodes(node.subgraph, seen)]);
}

/** The node that a run calls by this id: "3", or "12:5:3" for what lies in sub-graphs; null if there is none. */
export function nodeAt(root, id) {
  let [graph, found] = [root, null];
  for (const part of String(id).split(":")) {
    found = (graph?.nodes ?? graph?._nodes ?? []).find((node) => String(node.id) === part) ?? null;
    graph = found?.subgraph;
  }
  return found;
}

/** What the page's `outputs` hold of a node, under the name that they have for its place. */
export const outputOf = (node, outputs, root) => outputs?.[node.graph && node.graph !== root ? `${node.graph.id}:${node.id}` : node.id];

function resolve(graph, link, root) {
  if (!link) return null;
  if (link.origin_id === OUTSIDE) {
    const host = allNodes(root).find((node) => node.subgraph === graph);
    return host ? origin(host, host.inputs?.[link.origin_slot], root) : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node?.subgraph) return node ?? null;
  const inside = node.subgraph;
  return resolve(inside, linkOf(inside, inside.outputs?.[link.origin_slot]?.linkIds?.[0]), root);
}

/** The node in front of an input; null if there is none. */
export function origin(node, input, root) {
  return node.graph && input ? resolve(node.graph, linkOf(node.graph, input.link), root) : null;
}

export const inputOf = (node, name) => node.inputs?.find((input) => input.name === name);

/** The nodes in front of some inputs of a node and of those before it, nearest first: along one type as far as it goes. */
export function* before(node, inputs, root, seen = new Set([node])) {
  for (const input of inputs) {
    const found = origin(node, input, root);
    if (!found || seen.has(found)) continue;
    seen.add(found);
    yield found;
    const linked = (found.inputs ?? []).filter((other) => other.link != null);
    const alike = linked.filter((other) => other.type === input.type);
    yield* before(found, alike.length ? alike : linked, root, seen);
  }
}

/** {widget, file} of the loader in front of a Train LoRA node, on its wire of this name; null if there is none. */
export function loaderOf(train, root, wire = "model") {
  for (const node of before(train, [inputOf(train, wire)].filter(Boolean), root)) {
    const found = loaderIn(node);
    if (found) return found;
  }
  return null;
}

function loaderIn(node) {
  for (const name of LOADERS) {
    const value = node.widgets?.find((widget) => widget.name === name)?.value;
    const file = typeof value === "string" ? value : value?.content; // some packs' lists hold objects
    if (typeof file === "string" && file) return { widget: name, file };
  }
  return null;
}

/** Files of the LoRAs that lie on the model on a wire of a Train LoRA node. */
export function lorasOf(train, root, wire = "model") {
  const files = [];
  for (const node of before(train, [inputOf(train, wire)].filter(Boolean), root)) {
    if (node.mode !== BYPASSED) files.push(...lorasIn(node));
    if (loaderIn(node)) break; // which may have LoRAs of its own
  }
  return files;
}

function lorasIn(node) {
  const { lora_name: file, strength_model: strength } = valuesOf(node);
  // Some packs' loaders hold several, each with a switch.
  const several = (node.widgets ?? []).map((widget) => widget.value).filter((value) => typeof value?.lora === "string");
  const files = several.filter((one) => one.on !== false).map((one) => one.lora);
  return [...(typeof file === "string" && strength !== 0 ? [file] : []), ...files].filter((one) => !NO_LORA.includes(one));
}

/** The model that draws a Train LoRA node's samples where that is another one; null where it is the trained one. */
export function drawnWith(train, root) {
  if (inputOf(train, "preview_model")?.link == null) return null;
  return { model: loaderOf(train, root, "preview_model"), loras: lorasOf(train, root, "preview_model") };
}

/** The guidance of a Train LoRA node's samples; null where a wire brings it, or their steps, and nobody knows before the run. */
export function guidanceOf(train) {
  const isWired = ["sigmas", "guider"].some((name) => inputOf(train, name)?.link != null);
  return isWired ? null : valuesOf(train).preview_cfg;
}

/** What the samples of a Train LoRA node, or the cells of a grid, are drawn with: its loader, null if there is none, and LoRAs. */
export function drawsWith(node, root) {
  const nodes = [node, ...before(node, [inputOf(node, "model")].filter(Boolean), root)];
  const from = nodes.find((one) => one.comfyClass === "TrainLoRA") ?? node; // it hands on what it draws with
  return drawnWith(from, root) ?? { model: loaderOf(from, root), loras: lorasOf(from, root) };
}

/** [{widget, file}] of the loader in front of a Train LoRA node's text encoder. */
export function textsOf(train, root) {
  for (const node of before(train, [inputOf(train, "clip")].filter(Boolean), root)) {
    const named = (node.widgets ?? []).filter((widget) => TEXTS.test(widget.name) && typeof widget.value === "string" && widget.value);
    if (named.length) return named.map((widget) => ({ widget: widget.name, file: widget.value }));
  }
  return [];
}

/** The Train LoRA nodes that a Configure LoRA node leads to. */
export function trainersOf(config, root) {
  const reaches = (train) => [...before(train, [inputOf(train, "config")].filter(Boolean), root)].includes(config);
  return allNodes(root).filter((node) => node.comfyClass === "TrainLoRA" && reaches(node));
}

/** The Configure LoRA node in front of a Train LoRA node. */
export function recipeOf(train, root) {
  const nodes = before(train, [inputOf(train, "config")].filter(Boolean), root);
  return [...nodes].find((node) => node.comfyClass === "ConfigureLoRA") ?? null;
}

/** The widgets' plain values; those that another node gives, or that JSON cannot hold, are left out. */
export function valuesOf(node) {
  const given = new Set((node.inputs ?? []).filter((input) => input.link != null && input.widget).map((input) => input.widget.name));
  const plain = (value) =>
    typeof value === "string" || typeof value === "boolean" ||
    (typeof value === "number" && Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value)));
  const kept = (node.widgets ?? []).filter((widget) => !given.has(widget.name) && plain(widget.value) && widget.name);
  return Object.fromEntries(kept.map((widget) => [widget.name, widget.value]));
}

/**
 * The Load Dataset nodes' values in front of a Train LoRA node, first to last; null where only a run can tell.
 * `slider`: from what a Slider Dataset behind them learns.
 */
export function datasetsOf(train, root) {
  const found = [];
  let slider = null;
  let node = origin(train, inputOf(train, "dataset"), root);
  for (const seen = new Set(); node && !seen.has(node); ) {
    seen.add(node);
    const isFolder = node.comfyClass === "LoadDataset";
    const isSlider = node.comfyClass === "SliderDataset";
    if (!isFolder && !isSlider && !["AutoCaption", "Reroute"].includes(node.comfyClass ?? node.type)) return null;
    if ((isFolder || isSlider) && node.mode !== BYPASSED) {
      const given = (node.inputs ?? []).filter((input) => input.link != null && input.widget);
      if (given.some((input) => isFolder || input.widget.name === "source")) return null;
      if (isSlider) slider ??= valuesOf(node).source;
      else found.unshift(slider == null ? valuesOf(node) : { ...valuesOf(node), slider });
    }
    node = origin(node, inputOf(node, "dataset") ?? node.inputs?.[0], root);
  }
  return found.length ? found : null;
}

/** The Epoch Weight Grid nodes that show the run of a Train LoRA node. */
export function gridsOf(train, root) {
  const shows = (grid) => [...before(grid, [inputOf(grid, "epochs")].filter(Boolean), root)].includes(train);
  return allNodes(root).filter((node) => node.comfyClass === "EpochWeightGrid" && node.mode !== BYPASSED && shows(node));
}

/** The nodes of the graph that a Configure LoRA node stands in, each once: what starting points are set in. */
export function partsOf(config, root) {
  const trainers = trainersOf(config, root);
  const found = new Set([config, ...trainers]);
  for (const train of trainers) {
    for (const node of before(train, [inputOf(train, "dataset")].filter(Boolean), root)) {
      if (["LoadDataset", "AutoCaption"].includes(node.comfyClass)) found.add(node);
    }
  }
  for (const grid of allNodes(root).filter((node) => node.comfyClass === "EpochWeightGrid")) {
    const runs = [...before(grid, [inputOf(grid, "epochs")].filter(Boolean), root)];
    if (runs.some((node) => trainers.includes(node))) found.add(grid);
  }
  // What draws with the trained model right away, and the size that it draws at.
  for (const sampler of allNodes(root).filter((node) => node.comfyClass === "KSampler")) {
    const models = [...before(sampler, [inputOf(sampler, "model")].filter(Boolean), root)];
    if (!models.some((node) => trainers.includes(node))) continue;
    found.add(sampler);
    const latents = origin(sampler, inputOf(sampler, "latent_image"), root);
    if (["EmptyLatentImage", "EmptySD3LatentImage"].includes(latents?.comfyClass)) found.add(latents);
  }
  return [...found];
}
