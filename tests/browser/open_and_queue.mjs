// Opens a workflow in the real canvas, queues it, waits for its end, and tells on the last line (JSON) what was seen.
//   node open_and_queue.mjs '{"url", "playwright", "chromium", "shots", "workflow", "widgets", "pictures", "seconds"}'
// workflow: address of the workflow's JSON on the server. widgets: {node type: {widget: value}}, set before queueing.
// pictures: types of the nodes that must show a picture in the end. shots: folder for two pictures of the page.
// others: {name: address} of workflows that are only opened, before; shootOthers: with a picture of each.
import { createRequire } from "node:module";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const task = JSON.parse(process.argv[2]);
const { chromium } = createRequire(join(task.playwright, "package.json"))("playwright-core");
const profile = mkdtempSync(join(tmpdir(), "atelier-browser-"));
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const SMALL = { width: 1280, height: 720 }; // drawing is done in software: a large page would slow the training down
const LARGE = { width: 2600, height: 1500 }; // at which text in the whole workflow can be read
const context = await chromium.launchPersistentContext(profile,
  { executablePath: task.chromium, headless: true, args: flags, viewport: SMALL });
const seen = { consoleErrors: [], pageErrors: [] };

async function open(page, name, address) {
  const workflow = await page.evaluate(async (where) => (await fetch(where)).json(), address);
  await page.evaluate(async ([json, title]) => { await window.app.loadGraphData(json, true, true, title); }, [workflow, name]);
  await page.waitForTimeout(1500);
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

  seen.others = {};
  for (const [name, address] of Object.entries(task.others ?? {})) {
    seen.others[name] = await open(page, name, address);
    if (task.shootOthers) {
      await showAll(page);
      await page.screenshot({ path: join(task.shots, `${name}.png`) });
      await page.setViewportSize(SMALL);
    }
  }
  Object.assign(seen, await open(page, "train_then_test", task.workflow));
  await showAll(page);
  await page.screenshot({ path: join(task.shots, "opened.png") });
  await page.setViewportSize(SMALL);

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
  await showAll(page); // only a node that is in view fetches its pictures
  for (let i = 0; i < 60; i++) {
    seen.pictures = await page.evaluate(sizes, task.pictures);
    if (Object.values(seen.pictures).every((found) => found.length)) break;
    await page.waitForTimeout(500);
  }
  await page.screenshot({ path: join(task.shots, "finished.png") });
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
console.log(JSON.stringify(seen));
