// Looks at the sizes of fresh nodes, at their hidden widgets in groups, and at what panels do to the nodes around them.
// kinds: the pack's nodes. properties: whether this host has a panel of a node's widgets beside the canvas. row: {node type: widgets}, a dataset and its captions that are queued.
import { drive, listen } from "./page.mjs";

const PLAIN = ["LoadDataset", "AutoCaption"];
const sizes = () => Object.fromEntries(window.app.graph._nodes.map((node) => {
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  return [node.type, { height: Math.round(element ? element.offsetHeight - 30 : node.size[1]), place: [...node.pos].map(Math.round), stored: Math.round(node.size[1]) }];
}));
const group = () => {
  const node = window.app.graph._nodes.find((one) => one.type === "ConfigureLoRA");
  const headings = node.widgets.filter((widget) => widget.name.startsWith("group_"));
  return {
    titles: headings.map((widget) => widget.label), values: node.serialize().widgets_values, copied: node.clone().serialize().widgets_values,
    shown: node.widgets.filter((widget) => widget.advanced && !widget.hidden && !widget.name.startsWith("group_")).map((widget) => widget.name),
  };
};

await drive({ width: 1366, height: 768 }, async ({ page, task, seen, limit, shot, ready }) => {
  await page.evaluate((kinds) => {
    window.app.graph.clear();
    kinds.forEach((kind, i) => {
      const node = window.LiteGraph.createNode(kind);
      window.app.graph.add(node);
      node.pos = [450 * i, 60];
    });
  }, task.kinds);
  const look = async (name, type = "ConfigureLoRA", scale = 0.7) => {
    await page.evaluate(([wanted, zoom]) => {
      const node = window.app.graph._nodes.find((one) => one.type === wanted);
      const { ds } = window.app.canvas;
      ds.scale = zoom;
      ds.offset[0] = 300 / zoom - node.pos[0];
      ds.offset[1] = 110 / zoom - node.pos[1];
      window.app.canvas.setDirty(true, true);
    }, [type, scale]);
    await page.waitForTimeout(1500);
    await shot(name);
  };
  /** As the host's own controls do it. */
  const toggle = () => page.evaluate((vue) => {
    for (const node of window.app.graph._nodes) {
      if (vue) document.querySelector(`[data-node-id="${node.id}"] [data-testid=advanced-inputs-button]`)?.click();
      else node.toggleAdvanced();
    }
  }, task.vue);
  await page.waitForTimeout(2000);
  await look("fresh");
  seen.fresh = await page.evaluate(sizes);
  await toggle();
  await page.waitForTimeout(1500);
  seen.advanced = await page.evaluate(sizes);
  seen.folded = await page.evaluate(group);
  await look("groups");
  await page.evaluate(() => {
    const node = window.app.graph._nodes.find((one) => one.type === "ConfigureLoRA");
    node.widgets.find((widget) => widget.name === "shift").value = 3;
    node.widgets.find((widget) => widget.name === "group_noise").callback();
  });
  await page.waitForTimeout(2000);
  seen.opened = await page.evaluate(sizes);
  seen.unfolded = await page.evaluate(group);
  await look("group-open", "ConfigureLoRA", 0.5);
  await toggle();
  await page.waitForTimeout(1500);
  seen.hidden = await page.evaluate(sizes);

  // The properties panel shows a node's widgets; when it is closed again, the panels are as wide as they were.
  const widths = () => page.evaluate(() => [...document.querySelectorAll(".atelier:not(.atelier-dialog)")].map((one) => Math.round(one.offsetWidth)).filter(Boolean).sort());
  await look("panels", "TrainLoRA", 0.5);
  seen.widths = await widths();
  const properties = page.locator('button[aria-label="Toggle properties panel"]').first();
  if (task.properties) {
    await properties.click();
    for (const type of ["TrainLoRA", "ConfigureLoRA"]) {
      await page.evaluate((wanted) => {
        const { canvas, graph } = window.app;
        canvas.deselectAll();
        canvas.selectNode(graph._nodes.find((node) => node.type === wanted));
      }, type);
      await page.waitForTimeout(800);
    }
    await shot("properties");
    await page.evaluate(() => window.app.canvas.deselectAll());
    await properties.click();
    await page.waitForTimeout(1000);
  }
  seen.after = await widths();

  // A dataset and its captions, close above each other, are queued; what they say and show covers nothing, and survives a reload.
  await page.evaluate(([row, plain]) => {
    window.app.graph.clear();
    let before = null;
    plain.forEach((type) => {
      const node = window.LiteGraph.createNode(type);
      window.app.graph.add(node);
      node.pos = [100, before ? before.pos[1] + before.size[1] + 50 : 60];
      for (const [name, value] of Object.entries(row[type])) node.widgets.find((widget) => widget.name === name).value = value;
      before?.connect(0, node, node.inputs.findIndex((input) => input.name === "dataset"));
      before = node;
    });
  }, [task.row, PLAIN]);
  await page.waitForTimeout(1500);
  await listen(page);
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.ended, null, limit);
  seen.ended = await page.evaluate(() => window.ended);
  await look("told", "LoadDataset", 0.6); // on the classic canvas nothing is measured that is out of sight
  for (let before = null; before !== JSON.stringify(seen.told); ) { // until nothing has moved for as long as the slowest look takes
    before = JSON.stringify(seen.told);
    await page.waitForTimeout(4500);
    seen.told = await page.evaluate(sizes);
  }
  const pictures = () => {
    const place = window.app.graph._nodes.find((node) => node.type === "LoadDataset").widgets.find((widget) => widget.name === "told").element;
    const box = place.getBoundingClientRect();
    const images = [...place.querySelectorAll(".atelier-film img")].map((image) => image.getBoundingClientRect());
    return { text: place.innerText, count: images.length, inside: images.every((one) => one.bottom <= box.bottom + 1), height: place.offsetHeight };
  };
  await shot("told-settled");
  seen.pictures = await page.evaluate(pictures);
  await page.reload();
  await ready();
  await page.waitForTimeout(3000);
  await look("told-again", "LoadDataset", 0.6);
  seen.again = await page.evaluate(pictures);
});
