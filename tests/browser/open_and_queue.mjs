// Opens a workflow in the real canvas, queues it, waits for its end, and tells on the last line (JSON) what was seen.
//   node open_and_queue.mjs '{"url", "playwright", "chromium", "shots", "workflow", "widgets", "pictures", "seconds"}'
// workflow: address of the workflow's JSON on the server. widgets: {node type: {widget: value}}, set before queueing.
// pictures: types of the nodes that must show a picture in the end. shots: folder for two pictures of the page.
import { createRequire } from "node:module";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const task = JSON.parse(process.argv[2]);
const { chromium } = createRequire(join(task.playwright, "package.json"))("playwright-core");
const profile = mkdtempSync(join(tmpdir(), "atelier-browser-"));
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const context = await chromium.launchPersistentContext(profile,
  { executablePath: task.chromium, headless: true, args: flags, viewport: { width: 1800, height: 1000 } });
const seen = { consoleErrors: [], pageErrors: [] };

try {
  // Nothing outside the server is asked: the frontend's news and fonts are not what is tested.
  await context.route((url) => !url.href.startsWith(task.url) && !["data:", "blob:"].includes(url.protocol), (r) => r.abort());
  const page = context.pages()[0] ?? (await context.newPage());
  page.on("console", (message) => message.type() === "error" && seen.consoleErrors.push(message.text()));
  page.on("pageerror", (error) => seen.pageErrors.push(String(error)));
  // A person who has been here before: without this, the frontend greets with its own templates.
  await fetch(task.url + "/settings/Comfy.TutorialCompleted", { method: "POST", body: "true" });
  await page.goto(task.url);
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph && document.querySelector("canvas"), null, { timeout: 120000 });
  await page.getByTestId("queue-button").waitFor({ timeout: 120000 });

  const workflow = await page.evaluate(async (address) => (await fetch(address)).json(), task.workflow);
  await page.evaluate(async (json) => { await window.app.loadGraphData(json, true, true, "train_then_test"); }, workflow);
  await page.waitForTimeout(1500);
  Object.assign(seen, await page.evaluate(() => ({
    types: window.app.graph._nodes.map((n) => n.type),
    unknown: window.app.graph._nodes.filter((n) => !(n.type in window.LiteGraph.registered_node_types)).map((n) => n.type),
    dialogs: [...document.querySelectorAll("[role=dialog]")].map((d) => d.innerText),
    missingText: /missing node/i.test(document.body.innerText),
    widgets: window.app.graph.serialize().nodes.map((n) => [n.id, n.type, n.widgets_values ?? []]).sort((a, b) => a[0] - b[0]),
  })));
  seen.stored = workflow.nodes.map((n) => [n.id, n.type, n.widgets_values ?? []]).sort((a, b) => a[0] - b[0]);
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(800);
  await page.screenshot({ path: join(task.shots, "opened.png") });

  seen.unset = await page.evaluate((wanted) => {
    const failed = [];
    for (const [type, values] of Object.entries(wanted)) {
      for (const node of window.app.graph._nodes.filter((n) => n.type === type)) {
        for (const [name, value] of Object.entries(values)) {
          const widget = node.widgets?.find((w) => w.name === name);
          if (widget) { widget.value = value; widget.callback?.(value); } else failed.push(`${type}.${name}`);
        }
      }
    }
    return failed;
  }, task.widgets);
  await page.evaluate(() => {
    window.ended = null;
    for (const name of ["execution_success", "execution_error", "execution_interrupted"]) {
      window.app.api.addEventListener(name, (event) => { window.ended = { name, detail: event.detail }; });
    }
  });
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.ended || /error/i.test(document.querySelector("[role=dialog]")?.innerText ?? ""), null,
    { timeout: task.seconds * 1000 });
  seen.ended = await page.evaluate(() => window.ended);
  seen.dialogsAfter = await page.evaluate(() => [...document.querySelectorAll("[role=dialog]")].map((d) => d.innerText));
  const sizes = (types) => Object.fromEntries(types.map((type) => [type, window.app.graph._nodes.filter((n) => n.type === type)
    .flatMap((n) => n.imgs ?? []).filter((i) => i.naturalWidth).map((i) => [i.naturalWidth, i.naturalHeight])]));
  for (let i = 0; i < 30; i++) { // pictures are fetched after the end is told
    seen.pictures = await page.evaluate(sizes, task.pictures);
    if (Object.values(seen.pictures).every((found) => found.length)) break;
    await page.waitForTimeout(500);
  }
  await page.waitForTimeout(1000);
  await page.screenshot({ path: join(task.shots, "finished.png") });
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
console.log(JSON.stringify(seen));
