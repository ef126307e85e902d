// Watches a training in the canvas as a person would: looks at the recipe's curve, takes the preset of the model, queues, sees the
// loss move, reloads the page, asks for a file with the keyboard, stops and keeps. Tells on the last line (JSON) what was seen.
//   node watch_training.mjs '{"url", "playwright", "chromium", "shots", "workflow", "widgets", "seconds", "vue", "palette"}'
// vue: whether nodes are drawn by the Vue renderer. palette: id of the colours.
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
  { executablePath: task.chromium, headless: true, args: flags, viewport: { width: 1500, height: 1000 } });
const seen = { consoleErrors: [], pageErrors: [], unset: [] };
const limit = { timeout: task.seconds * 1000 };

const ready = (page) =>
  page.waitForFunction(() => window.app?.graph && window.LiteGraph && document.querySelector("canvas"), null, limit);
/** Puts one node into the middle of the page, as large as it fits. */
async function lookAt(page, type) {
  await page.evaluate((wanted) => {
    const node = window.app.graph._nodes.find((n) => n.type === wanted);
    const view = window.app.canvas;
    const [width, height] = [window.innerWidth, window.innerHeight];
    view.ds.scale = Math.min(1.3, (height - 160) / (node.size[1] + 60));
    view.ds.offset[0] = (0.5 * width) / view.ds.scale - node.pos[0] - node.size[0] / 2;
    view.ds.offset[1] = 90 / view.ds.scale - node.pos[1] + 30;
    view.setDirty(true, true);
  }, type);
  await page.waitForTimeout(1200);
}
const shot = (page, name) => page.screenshot({ path: join(task.shots, `${name}-${task.vue ? "vue" : "classic"}-${task.palette}.png`) });
const values = (page, type) =>
  page.evaluate((wanted) => {
    const node = window.app.graph._nodes.find((n) => n.type === wanted);
    return Object.fromEntries(node.widgets.filter((w) => w.name).map((w) => [w.name, w.value]));
  }, type);
async function set(page, widgets) {
  const failed = await page.evaluate((wanted) => {
    const missing = [];
    for (const [type, values] of Object.entries(wanted)) {
      for (const node of window.app.graph._nodes.filter((n) => n.type === type)) {
        for (const [name, value] of Object.entries(values)) {
          const widget = node.widgets?.find((w) => w.name === name);
          if (widget) { widget.value = value; widget.callback?.(value); } else missing.push(`${type}.${name}`);
        }
      }
    }
    return missing;
  }, widgets);
  seen.unset.push(...failed);
}
const points = () => (document.querySelector("[data-run] .atelier-smooth")?.getAttribute("points") ?? "").split(" ").filter(Boolean).length;
/** What the panel of the run says. */
const panel = (page) =>
  page.evaluate(() => {
    const place = document.querySelector("[data-run]");
    return {
      run: place?.dataset.run, state: place?.querySelector(".atelier-state")?.innerText, text: place?.innerText,
      step: place?.querySelector("progress")?.value, samples: place?.querySelectorAll(".atelier-film img").length,
      buttons: [...(place?.querySelectorAll("button") ?? [])].map((b) => [b.innerText, b.getAttribute("aria-label"), b.disabled]),
    };
  });
/** Waits until a question to the server is answered with yes. */
async function answers(page, question) {
  for (const end = Date.now() + limit.timeout; !(await page.evaluate(question)); await page.waitForTimeout(200)) {
    if (Date.now() > end) throw new Error(`never true: ${question}`);
  }
}
const listen = (page) =>
  page.evaluate(() => {
    window.ended = null;
    for (const name of ["execution_success", "execution_error", "execution_interrupted"]) {
      window.app.api.addEventListener(name, (event) => { window.ended = { name, detail: event.detail }; });
    }
  });

try {
  await context.route((url) => !url.href.startsWith(task.url) && !["data:", "blob:"].includes(url.protocol), (r) => r.abort());
  const page = context.pages()[0] ?? (await context.newPage());
  page.on("console", (message) => message.type() === "error" && seen.consoleErrors.push(message.text()));
  page.on("pageerror", (error) => seen.pageErrors.push(String(error)));
  const settings = { "Comfy.TutorialCompleted": true, "Comfy.VueNodes.Enabled": task.vue, "Comfy.ColorPalette": task.palette };
  for (const [name, value] of Object.entries(settings)) {
    await fetch(`${task.url}/settings/${name}`, { method: "POST", body: JSON.stringify(value) });
  }
  await page.goto(task.url);
  await ready(page);
  await page.getByTestId("queue-button").waitFor(limit);
  const workflow = await page.evaluate(async (address) => (await fetch(address)).json(), task.workflow);
  await page.evaluate(async (json) => { await window.app.loadGraphData(json, true, true, "watched"); }, workflow);
  await page.waitForTimeout(1500);

  // The recipe before anything is queued.
  await lookAt(page, "ConfigureLoRA");
  await page.waitForFunction(() => document.querySelector(".atelier-drawing[data-total] .atelier-rate"), null, limit);
  const outlook = () => page.evaluate(() => {
    const place = document.querySelector(".atelier-drawing[data-total]");
    return { text: place.closest(".atelier").innerText, total: place.dataset.total, label: place.getAttribute("aria-label") };
  });
  seen.outlook = await outlook();
  await set(page, { ConfigureLoRA: { preset: "suited to the model" } });
  await page.waitForFunction(() => /family/.test(document.querySelector(".atelier-drawing[data-total]").closest(".atelier").innerText),
    null, limit);
  seen.suited = { ...(await values(page, "ConfigureLoRA")), note: (await outlook()).text };
  await shot(page, "recipe");
  await set(page, { ConfigureLoRA: { warmup_steps: 10, max_steps: 5, schedule: "cosine" } });
  await page.waitForFunction(() => document.querySelector(".atelier-bad")?.innerText.includes("warmup"), null, limit);
  seen.contradiction = (await outlook()).text;
  await shot(page, "contradiction");

  // The run.
  await set(page, task.widgets);
  await lookAt(page, "TrainLoRA");
  await listen(page);
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(`(${points})() > 5`, null, limit);
  seen.first = await panel(page);
  await page.waitForFunction(`(${points})() > 30`, null, limit);
  seen.later = await panel(page);
  await shot(page, "training");

  await page.reload();
  await ready(page);
  await page.getByTestId("queue-button").waitFor(limit);
  await page.waitForTimeout(1500);
  seen.restored = await page.evaluate(() => window.app.graph._nodes.map((n) => n.type));
  await lookAt(page, "TrainLoRA");
  await page.waitForFunction(`(${points})() > 30`, null, limit);
  seen.reloaded = await panel(page);
  await listen(page);

  // By the keyboard alone.
  await page.locator("[data-run] select").focus();
  for (let i = 0; i < 3 && !(await page.evaluate(() => document.activeElement?.innerText?.startsWith("Save now"))); i++) {
    await page.keyboard.press("Tab");
  }
  await page.keyboard.press("Enter");
  await answers(page, () => fetch("/lora_atelier/runs/" + document.querySelector("[data-run]").dataset.run)
    .then((answer) => answer.json()).then((run) => run.saved.some((file) => file.kind === "step")));
  await page.locator("[data-run] button", { hasText: "Stop and keep" }).click();
  await page.waitForFunction(() => window.ended, null, limit);
  seen.ended = await page.evaluate(() => window.ended);
  await page.waitForFunction(() => /finished/.test(document.querySelector("[data-run] .atelier-state")?.innerText ?? ""), null, limit);
  await page.waitForTimeout(1500);
  seen.finished = await panel(page);
  await shot(page, "finished");
} catch (error) {
  const page = context.pages()[0];
  if (page) await shot(page, "failed").catch(() => {});
  throw error;
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
console.log(JSON.stringify(seen));
