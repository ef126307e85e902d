// Opens a workflow in the real canvas, queues it, waits for its end.
// workflow: address of the workflow's JSON on the server. widgets: {node type: {widget: value}}, set before queueing.
// pictures: types of the nodes that must show a picture in the end.
// others: {name: address} of workflows that are only opened, before; shootOthers: with a picture of each.
import { drive, listen, load, set } from "./page.mjs";

const SMALL = { width: 1280, height: 720 }; // drawing is done in software: a large page would slow the training down
const LARGE = { width: 2600, height: 1500 }; // at which text in the whole workflow can be read

async function open(page, name, address) {
  const workflow = await load(page, address, name);
  const found = await page.evaluate(() => ({
    types: window.app.graph._nodes.map((n) => n.type),
    unknown: window.app.graph._nodes.filter((n) => !(n.type in window.LiteGraph.registered_node_types)).map((n) => n.type),
    dialogs: [...document.querySelectorAll("[role=dialog]")].map((d) => d.innerText),
    missingText: /missing node/i.test(document.body.innerText),
    widgets: window.app.graph.serialize().nodes.map((n) => [n.id, n.type, n.widgets_values ?? []]).sort((a, b) => a[0] - b[0]),
    links: [...window.app.graph.links.values()].map((l) => [l.id, l.origin_id, l.origin_slot, l.target_id]).sort((a, b) => a[0] - b[0]),
  }));
  found.stored = workflow.nodes.map((n) => [n.id, n.type, n.widgets_values ?? []]).sort((a, b) => a[0] - b[0]);
  found.storedLinks = workflow.links.map((l) => l.slice(0, 4)).sort((a, b) => a[0] - b[0]);
  return found;
}

async function showAll(page) {
  await page.setViewportSize(LARGE);
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(1500);
}

await drive(SMALL, async ({ page, task, seen, limit, shot }) => {
  seen.templates = await page.evaluate(() => window.app.api.getWorkflowTemplates());
  seen.others = {};
  for (const [name, address] of Object.entries(task.others ?? {})) {
    seen.others[name] = await open(page, name, address);
    if (task.shootOthers) {
      await showAll(page);
      await shot(name);
      await page.setViewportSize(SMALL);
    }
  }
  Object.assign(seen, await open(page, "train_then_test", task.workflow));
  await showAll(page);
  await shot("opened");
  await page.setViewportSize(SMALL);

  seen.unset = await set(page, task.widgets);
  await listen(page);
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.ended || /error/i.test(document.querySelector("[role=dialog]")?.innerText ?? ""), null, limit);
  seen.ended = await page.evaluate(() => window.ended);
  seen.dialogsAfter = await page.evaluate(() => [...document.querySelectorAll("[role=dialog]")].map((d) => d.innerText));
  const sizes = (types) => Object.fromEntries(types.map((type) => [type, window.app.graph._nodes.filter((n) => n.type === type)
    .flatMap((n) => n.imgs ?? []).filter((i) => i.naturalWidth).map((i) => [i.naturalWidth, i.naturalHeight])]));
  await showAll(page); // only a node that is in view fetches its pictures
  for (let i = 0; i < 60; i++) {
    seen.pictures = await page.evaluate(sizes, task.pictures);
    if (Object.values(seen.pictures).every((found) => found.length)) break;
    await page.waitForTimeout(500);
  }
  // The grid's own page is in its panel, within the node.
  seen.page = await page.evaluate(() => {
    const place = window.app.graph._nodes.find((node) => node.type === "EpochWeightGrid").widgets.find((widget) => widget.name === "told").element;
    const [box, image] = [place, place.querySelector("img")].map((one) => one.getBoundingClientRect());
    return { text: place.innerText, width: place.querySelector("img").naturalWidth, inside: image.left >= box.left && image.right <= box.right + 1 };
  });
  await shot("finished");
});
