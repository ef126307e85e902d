// Queues a dataset and its captions and reads what the nodes say, as a person would: folded first, then unfolded; looks for the
// trainer among all nodes, and reads a help page.
// prompt: {node type: widgets} in a row, each connected with the one before by "dataset".
import { drive, listen } from "./page.mjs";

const told = () => Object.fromEntries(window.app.graph._nodes.map((node) => {
  const widget = node.widgets?.find((one) => one.name === "told");
  const place = widget?.element;
  const box = place?.getBoundingClientRect();
  return [node.type, !place ? null : {
    text: place.innerText, open: [...place.querySelectorAll("details")].filter((one) => one.open).length,
    folds: [...place.querySelectorAll("summary")].map((one) => one.innerText),
    warnings: [...place.querySelectorAll(".atelier-warning")].map((one) => one.textContent),
    cells: [...place.querySelectorAll("td")].map((one) => one.textContent),
    visible: box.width > 100 && box.height > 30, height: place.offsetHeight,
  }];
}));

await drive({ width: 1366, height: 768 }, async ({ page, task, seen, limit, shot }) => {
  await page.evaluate((row) => {
    window.app.graph.clear();
    let before = null;
    row.forEach(([type, widgets], i) => {
      const node = window.LiteGraph.createNode(type);
      window.app.graph.add(node);
      node.pos = [60 + 480 * i, 60];
      node.setSize([440, node.size[1]]);
      for (const [name, value] of Object.entries(widgets)) node.widgets.find((w) => w.name === name).value = value;
      before?.connect(0, node, node.inputs.findIndex((input) => input.name === "dataset"));
      before = node;
    });
  }, task.row);
  await page.waitForTimeout(1000);
  seen.before = await page.evaluate(told);
  await listen(page);
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.ended, null, limit);
  seen.ended = await page.evaluate(() => window.ended);
  await page.waitForTimeout(2500);
  await page.evaluate(() => { window.app.canvas.ds.scale = 0.8; window.app.canvas.ds.offset[0] = 60; window.app.canvas.ds.offset[1] = 60; window.app.canvas.setDirty(true, true); });
  await page.waitForTimeout(1500);
  seen.folded = await page.evaluate(told);
  await shot("told-folded");
  for (const fold of await page.locator(".atelier-told summary").all()) await fold.evaluate((one) => one.click());
  await page.waitForTimeout(1500);
  seen.unfolded = await page.evaluate(told);
  await shot("told-unfolded");

  // The trainer is found beside the host's of nearly that name.
  await page.evaluate(() => window.app.extensionManager.command.execute("Workspace.SearchBox.Toggle"));
  await page.waitForFunction(() => document.activeElement?.tagName === "INPUT", null, limit);
  await page.keyboard.type("train lora");
  await page.getByText("Train LoRA (Atelier)").first().waitFor(limit);
  await shot("found");
  for (let i = 0; i < 2; i++) await page.keyboard.press("Escape");

  // The help page of a node, with its pictures.
  await page.evaluate(() => {
    const { canvas, graph } = window.app;
    Object.assign(canvas.ds, { scale: 0.5, offset: [200, 400] });
    canvas.deselectAll();
    canvas.selectNode(graph._nodes.find((node) => node.type === "LoadDataset"));
    canvas.setDirty(true, true);
  });
  await page.getByTestId("info-button").first().click(limit);
  await page.waitForFunction(() => {
    const images = [...document.querySelectorAll("[class*=help] img")];
    return images.length && images.every((image) => image.complete);
  }, null, limit);
  seen.help = await page.evaluate(() => [...document.querySelectorAll("[class*=help] img")].map((image) => image.naturalWidth));
  await shot("help");
  await page.locator('button[aria-label="Toggle properties panel"]').first().click(); // the host keeps it open for the next page
  await page.waitForTimeout(500);
});
