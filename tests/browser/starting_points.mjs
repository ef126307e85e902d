// Chooses a starting point in Configure LoRA, takes it back, has another checkpoint loaded and takes what is offered, and builds a
// graph by hand to see what fresh nodes get.
// workflow: address of the workflow's JSON on the server. other: file of another checkpoint.
import { drive, load, set } from "./page.mjs";

const TYPES = ["LoadDataset", "ConfigureLoRA", "TrainLoRA", "EpochWeightGrid"];
const values = (page) =>
  page.evaluate((types) => Object.fromEntries(types.map((type) => {
    const node = window.app.graph._nodes.find((n) => n.type === type);
    return [type, Object.fromEntries(node.widgets.filter((w) => w.name && w.serialize !== false).map((w) => [w.name, w.value]))];
  })), TYPES);
const said = (page) => page.evaluate(() => [...document.querySelectorAll(".atelier-set")].at(-1).parentElement.innerText);

async function lookAt(page, type) {
  await page.evaluate((wanted) => {
    const node = window.app.graph._nodes.findLast((n) => n.type === wanted);
    const view = window.app.canvas;
    view.ds.scale = Math.min(1, (window.innerHeight - 130) / (node.size[1] + 60));
    view.ds.offset[0] = (0.5 * window.innerWidth) / view.ds.scale - node.pos[0] - node.size[0] / 2;
    view.ds.offset[1] = 90 / view.ds.scale - node.pos[1] + 30;
    view.setDirty(true, true);
  }, type);
  await page.waitForTimeout(1000);
}

await drive({ width: 1366, height: 768 }, async ({ page, task, seen, limit, shot }) => {
  const told = (words) => page.waitForFunction((wanted) =>
    [...document.querySelectorAll(".atelier-set")].at(-1)?.parentElement.innerText.includes(wanted), words, limit);
  const press = (words) => page.evaluate((wanted) =>
    [...document.querySelectorAll(".atelier-set")].at(-1).parentElement.querySelectorAll("button")
      .forEach((b) => b.innerText.includes(wanted) && !b.hidden && b.click()), words);
  await load(page, task.workflow, "starting");
  seen.before = await values(page);
  seen.unset = await set(page, { ConfigureLoRA: { preset: "suited to the model: person" } });
  await told("widgets were set");
  await page.evaluate(() => { [...document.querySelectorAll(".atelier-set")].at(-1).open = true; });
  seen.chosen = await values(page);
  seen.said = await said(page);
  await lookAt(page, "ConfigureLoRA");
  await shot("starting");
  await press("Take back");
  await told("as it was before");
  seen.takenBack = await values(page);

  seen.unset.push(...await set(page, { ConfigureLoRA: { preset: "suited to the model: person" } }));
  await told("widgets were set");
  await page.evaluate((file) => {
    for (const node of window.app.graph._nodes.filter((n) => n.type === "CheckpointLoaderSimple")) node.widgets[0].value = file;
  }, task.other);
  await told("Another model");
  seen.offered = await said(page);
  await lookAt(page, "ConfigureLoRA");
  await shot("offered");
  await press("Set everything");
  await told("SD 1.5, person");
  seen.taken = await values(page);
  seen.saved = await page.evaluate(() => window.app.graph.serialize().nodes.find((n) => n.type === "ConfigureLoRA").properties.lora_atelier_start);

  // A graph that is built by hand.
  await page.evaluate((file) => {
    const graph = window.app.graph;
    graph.clear();
    const [loader, data, config, train, grid] = ["CheckpointLoaderSimple", "LoadDataset", "ConfigureLoRA", "TrainLoRA", "EpochWeightGrid"]
      .map((type, i) => {
        const node = window.LiteGraph.createNode(type);
        node.pos = [20 + 420 * i, 60];
        graph.add(node);
        return node;
      });
    loader.widgets[0].value = file;
    const slot = (node, name) => node.inputs.findIndex((input) => input.name === name);
    loader.connect(0, train, slot(train, "model"));
    data.connect(0, train, slot(train, "dataset"));
    grid.widgets.find((w) => w.name === "cfg").value = 2.5;
    config.connect(0, train, slot(train, "config"));
    train.connect(0, grid, slot(grid, "epochs"));
  }, task.other);
  await told("widgets were set");
  seen.built = await values(page);
  await lookAt(page, "ConfigureLoRA");
  await page.waitForFunction(() => document.querySelector(".atelier-drawing[data-total] .atelier-rate"), null, limit);
  await shot("built");
});
