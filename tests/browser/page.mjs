// What all drivers share: a browser of its own, a page of the server under test, and what was seen as JSON on the last line.
//   task: {"url", "playwright", "chromium", "shots", "seconds", "vue", "palette"}, and what the driver asks for besides.
// vue: whether nodes are drawn by the Vue renderer. palette: id of the colours. shots: folder for pictures of the page.
// settings: further settings of the page.
import { createRequire } from "node:module";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

/** Opens the page and runs `work({ page, task, seen, limit, shot, ready })`; whatever it puts into `seen` is printed. */
export async function drive(viewport, work) {
  const task = JSON.parse(process.argv[2]);
  const { chromium } = createRequire(join(task.playwright, "package.json"))("playwright-core");
  const profile = mkdtempSync(join(tmpdir(), "atelier-browser-"));
  const context = await chromium.launchPersistentContext(profile,
    { executablePath: task.chromium, headless: true, args: FLAGS, viewport });
  const seen = { consoleErrors: [], pageErrors: [] };
  const limit = { timeout: task.seconds * 1000 };
  context.setDefaultTimeout(limit.timeout); // drawing is done in software, on whatever else the machine leaves
  const page = context.pages()[0] ?? (await context.newPage());
  const kind = "vue" in task ? `-${task.vue ? "vue" : "classic"}-${task.palette}` : "";
  const shot = (name) => page.screenshot({ path: join(task.shots, `${name}${kind}.png`) });
  const ready = async () => {
    await page.waitForFunction(() => window.app?.graph && window.LiteGraph && document.querySelector("canvas"), null, limit);
    await page.getByTestId("queue-button").waitFor(limit);
  };
  try {
    // Nothing outside the server is asked: the frontend's news and fonts are not what is tested.
    await context.route((url) => !url.href.startsWith(task.url) && !["data:", "blob:"].includes(url.protocol), (r) => r.abort());
    page.on("console", (message) => message.type() === "error" && seen.consoleErrors.push(message.text()));
    page.on("pageerror", (error) => seen.pageErrors.push(String(error)));
    // A person who has been here before: without this, the frontend greets with its own templates.
    const settings = { "Comfy.TutorialCompleted": true, ...task.settings };
    if ("vue" in task) Object.assign(settings, { "Comfy.VueNodes.Enabled": task.vue, "Comfy.ColorPalette": task.palette });
    for (const [name, value] of Object.entries(settings)) {
      await fetch(`${task.url}/settings/${name}`, { method: "POST", body: JSON.stringify(value) });
    }
    await page.goto(task.url);
    await ready();
    await work({ page, task, seen, limit, shot, ready });
  } catch (error) {
    await shot("failed").catch(() => {});
    throw error;
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
  console.log(JSON.stringify(seen));
}

/** Loads a workflow of the server into the canvas; gives its JSON. */
export async function load(page, address, name) {
  const workflow = await page.evaluate(async (where) => (await fetch(where)).json(), address);
  await page.evaluate(async ([json, title]) => { await window.app.loadGraphData(json, true, true, title); }, [workflow, name]);
  await page.waitForTimeout(1500);
  return workflow;
}

/** Sets widgets, {node type: {widget: value}}, as if typed; gives those that are not there. */
export function set(page, widgets) {
  return page.evaluate((wanted) => {
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
}

/** From here on `window.ended` tells how the next run ended. */
export function listen(page) {
  return page.evaluate(() => {
    window.ended = null;
    for (const name of ["execution_success", "execution_error", "execution_interrupted"]) {
      window.app.api.addEventListener(name, (event) => { window.ended = { name, detail: event.detail }; });
    }
  });
}

/** Presses a button that this pack put on the node of a type. */
export function press(page, type, widget) {
  return page.evaluate(([wanted, name]) => {
    const node = window.app.graph._nodes.find((n) => n.type === wanted);
    node.widgets.find((w) => w.name === name).callback();
  }, [type, widget]);
}
