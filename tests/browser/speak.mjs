// Fresh nodes on a page in another language: their names, their widgets' and what stands in their panels, and the help page.
import { drive } from "./page.mjs";

await drive({ width: 1366, height: 768 }, async ({ page, task, seen, shot }) => {
  seen.nodes = await page.evaluate((kinds) => {
    window.app.graph.clear();
    return kinds.map((kind, i) => {
      const node = window.LiteGraph.createNode(kind);
      window.app.graph.add(node);
      node.pos = [20 + 440 * i, 60];
      return { kind, title: node.title, labels: Object.fromEntries((node.widgets ?? []).map((one) => [one.name, one.label ?? ""])) };
    });
  }, task.kinds);
  await page.evaluate(() => { window.app.canvas.ds.scale = 1; window.app.canvas.ds.offset = [0, 40]; window.app.canvas.setDirty(true, true); });
  await page.waitForTimeout(2500);
  seen.panels = await page.evaluate(() => window.app.graph._nodes.map((node) =>
    (node.widgets ?? []).map((one) => `${one.element?.innerText ?? ""} ${one.type === "button" ? one.label ?? one.name : ""}`).join(" ")));
  await shot("speaks");
  seen.help = await page.evaluate(async ([kinds, language]) => Promise.all(kinds.map(async (kind) => {
    const answer = await fetch(`/extensions/lora-atelier/docs/${kind}/${language}.md`);
    return answer.ok ? (await answer.text()).split("\n")[0] : answer.status;
  })), [task.kinds, task.language]);
});
