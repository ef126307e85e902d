// Graphs in the shape that the frontend's have, walked by js/lib/graph.js; prints what was found as JSON.
//   node graphs.mjs <address of graph.js as a module>
const { datasetsOf, drawnWith, drawsWith, guidanceOf, loaderOf, lorasOf, nodeAt, outputOf, partsOf, recipeOf, trainersOf, valuesOf } = await import(process.argv[2]);

class Graph {
  constructor() { Object.assign(this, { nodes: [], links: new Map() }); }
  add(comfyClass, widgets = {}, inputs = []) {
    const node = {
      id: this.nodes.length + 1, comfyClass, graph: this, mode: 0,
      widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })),
      inputs: inputs.map(([name, type]) => ({ name, type, link: null })), outputs: [],
    };
    this.nodes.push(node);
    return node;
  }
  link(from, to, name) {
    const id = this.links.size + 1;
    this.links.set(id, { origin_id: from.id ?? from, origin_slot: from.slot ?? 0 });
    to.inputs.find((input) => input.name === name).link = id;
    return id;
  }
  getNodeById(id) { return this.nodes.find((node) => node.id === id); }
}

const TRAIN = [["model", "MODEL"], ["preview_model", "MODEL"], ["dataset", "ATELIER_DATASET"], ["config", "ATELIER_CONFIG"]];
const found = {};

{ // CheckpointLoader -> LoraLoader -> Reroute -> TrainLoRA; two folders, captions, the recipe
  const graph = new Graph();
  const train = graph.add("TrainLoRA", {}, TRAIN);
  const config = graph.add("ConfigureLoRA", { name: "ink", rank: 8, seed: 2 ** 60, odd: NaN, [""]: 1 });
  const other = graph.add("ConfigureLoRA", { name: "other" });
  const loader = graph.add("CheckpointLoaderSimple", { ckpt_name: "a/b.safetensors" });
  const lora = graph.add("LoraLoader", { lora_name: "x" }, [["model", "MODEL"], ["clip", "CLIP"]]);
  const wrong = graph.add("CheckpointLoaderSimple", { ckpt_name: "clip-only.safetensors" });
  const reroute = graph.add("Reroute", {}, [["", "*"]]);
  graph.link(loader, lora, "model");
  graph.link(wrong, lora, "clip");
  graph.link(lora, reroute, "");
  graph.link(reroute, train, "model");
  graph.link(config, train, "config");
  const first = graph.add("LoadDataset", { folder: "input/a" }, [["dataset", "ATELIER_DATASET"]]);
  const second = graph.add("LoadDataset", { folder: "input/b" }, [["dataset", "ATELIER_DATASET"]]);
  const caption = graph.add("AutoCaption", {}, [["clip", "CLIP"], ["dataset", "ATELIER_DATASET"]]);
  graph.link(first, second, "dataset");
  graph.link(second, caption, "dataset");
  graph.link(caption, train, "dataset");
  found.loader = loaderOf(train, graph);
  found.drawn = [drawnWith(train, graph)];
  const several = graph.add("Power Lora Loader", { one: { on: true, lora: "p.safetensors" }, two: { on: false, lora: "q" }, three: { lora: "None" } }, [["model", "MODEL"]]);
  const shut = graph.add("LoraLoaderModelOnly", { lora_name: "shut", strength_model: 0 }, [["model", "MODEL"]]);
  const away = graph.add("LoraLoaderModelOnly", { lora_name: "away", strength_model: 1 }, [["model", "MODEL"]]);
  away.mode = 4;
  graph.link(loader, several, "model");
  graph.link(several, shut, "model");
  graph.link(shut, away, "model");
  graph.link(away, train, "preview_model");
  found.drawn.push(drawnWith(train, graph));
  const wired = graph.add("TrainLoRA", { preview_cfg: 4 }, [["guider", "GUIDER"], ["sigmas", "SIGMAS"]]);
  found.guidance = [guidanceOf(wired)];
  graph.link(graph.add("CFGGuider"), wired, "guider");
  found.guidance.push(guidanceOf(wired));
  found.loras = lorasOf(train, graph);
  found.datasets = datasetsOf(train, graph).map((row) => row.folder);
  found.trainers = [trainersOf(config, graph).length, trainersOf(other, graph).length];
  found.recipe = recipeOf(train, graph).widgets[0].value;
  found.values = valuesOf(config);
  const grids = [train, other].map((from) => {
    const grid = graph.add("EpochWeightGrid", {}, [["epochs", "ATELIER_EPOCHS"]]);
    graph.link(from, grid, "epochs");
    return grid;
  });
  found.parts = partsOf(config, graph).map((node) => node.comfyClass);
  found.otherGrid = partsOf(config, graph).includes(grids[1]);
  const slider = graph.add("SliderDataset", { source: "pairs of pictures", target: "" }, [["dataset", "ATELIER_DATASET"]]);
  const behind = graph.add("LoadDataset", { folder: "input/c" }, [["dataset", "ATELIER_DATASET"]]);
  graph.link(caption, slider, "dataset");
  graph.link(slider, behind, "dataset");
  graph.link(behind, train, "dataset");
  found.sliders = datasetsOf(train, graph);
  slider.mode = 4;
  found.without = datasetsOf(train, graph).map((row) => row.slider ?? null);
  graph.link(caption, train, "dataset");
  second.mode = 4;
  found.bypassed = datasetsOf(train, graph).map((row) => row.folder);
  const rendered = graph.add("RenderRegularisation", {}, [["dataset", "ATELIER_DATASET"]]);
  graph.link(caption, rendered, "dataset");
  graph.link(rendered, train, "dataset");
  found.unknown = datasetsOf(train, graph);
}
{ // the loader in one sub-graph, TrainLoRA in another; a ring does no harm
  const [root, inner, trainer] = [new Graph(), new Graph(), new Graph()];
  const loader = inner.add("UNETLoader", { unet_name: "flux.safetensors" });
  inner.links.set(7, { origin_id: loader.id, origin_slot: 0 });
  inner.outputs = [{ linkIds: [7] }];
  const box = Object.assign(root.add("box"), { subgraph: inner });
  const host = Object.assign(root.add("host", {}, [["model", "MODEL"]]), { subgraph: trainer });
  root.link(box, host, "model");
  const train = trainer.add("TrainLoRA", {}, TRAIN);
  trainer.link(-10, train, "model");
  found.subgraph = loaderOf(train, root);
  const innermost = Object.assign(trainer.add("deep"), { subgraph: Object.assign(new Graph(), { id: "g" }) });
  const deep = innermost.subgraph.add("EpochWeightGrid");
  const ids = [`${box.id}:1`, `${host.id}:1`, `${host.id}:${innermost.id}:1`, `${host.id}`, "1:1:1", "9", "9:1"];
  found.at = ids.map((id) => [loader, train, deep, host].indexOf(nodeAt(root, id)));
  found.outputs = [outputOf(deep, { 1: "other", "g:1": "its" }, root), outputOf(host, { 2: "its" }, root), outputOf(host, undefined, root) ?? null];
  found.none = recipeOf(train, root);
  const ring = root.add("Reroute", {}, [["", "*"]]);
  root.link(ring, ring, "");
  const lost = root.add("TrainLoRA", {}, TRAIN);
  root.link(ring, lost, "model");
  found.ring = loaderOf(lost, root);
}
{ // a grid on its own model, whose loader has a LoRA of its own; a grid on what Train LoRA hands on
  const graph = new Graph();
  const base = graph.add("CheckpointLoaderSimple", { ckpt_name: "base" });
  const quick = graph.add("Efficient Loader", { ckpt_name: "quick", lora_name: "lightning" });
  const none = graph.add("LoraLoaderModelOnly", { lora_name: "None", strength_model: 1 }, [["model", "MODEL"]]);
  const train = graph.add("TrainLoRA", {}, TRAIN);
  graph.link(base, train, "model");
  graph.link(quick, none, "model");
  const grids = [none, train, base].map((from) => {
    const grid = graph.add("EpochWeightGrid", {}, [["model", "MODEL"]]);
    graph.link(from, grid, "model");
    return grid;
  });
  const told = () => [train, ...grids].map((node) => drawsWith(node, graph)).map(({ model, loras }) => [model.file, ...loras]);
  found.draws = [told()];
  graph.link(none, train, "preview_model");
  found.draws.push(told());
}
console.log(JSON.stringify(found));
