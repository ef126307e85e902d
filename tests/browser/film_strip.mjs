// Looks at the film strip of a run whose samples are films, in Train LoRA's panel.
// run: name of a run that is there.
import { drive } from "./page.mjs";

await drive({ width: 1000, height: 900 }, async ({ page, task, seen, limit, shot }) => {
  await page.evaluate(() => {
    window.app.graph.clear();
    const node = window.LiteGraph.createNode("TrainLoRA");
    window.app.graph.add(node);
    node.pos = [60, 60];
    window.app.canvas.ds.scale = 1;
    window.app.canvas.ds.offset[0] = 200;
    window.app.canvas.ds.offset[1] = -360;
    window.app.canvas.setDirty(true, true);
  });
  const choice = page.locator("[data-run] select").first();
  await choice.waitFor({ state: "attached", ...limit });
  await choice.dispatchEvent("focus");
  await page.waitForFunction((name) => [...document.querySelectorAll("[data-run] select option")].some((one) => one.value === name), task.run, limit);
  await choice.selectOption(task.run, { force: true });
  const sample = page.locator(".atelier-film img").nth(1);
  await sample.waitFor(limit);
  await page.waitForFunction(() => [...document.querySelectorAll(".atelier-film img")].every((one) => one.complete && one.naturalWidth), null, limit);
  seen.films = await page.evaluate(() => [...document.querySelectorAll(".atelier-film li")].map((item) => {
    const name = (address) => new URL(address, location.href).searchParams.get("filename");
    return { shown: name(item.querySelector("img").src), opened: name(item.querySelector("a").href), said: item.innerText };
  }));
  const looks = new Set();
  for (let i = 0; i < 12; i += 1) {
    looks.add((await sample.screenshot()).toString("base64"));
    if (i === 2) await shot("film-strip");
    await page.waitForTimeout(200);
  }
  seen.looks = looks.size;
});
