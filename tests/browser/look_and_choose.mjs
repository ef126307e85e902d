// Looks at a grid that was drawn and chooses from it as a person would: opens the desk from the node, walks with the keyboard,
// compares two cells, marks one, and puts its LoRA into a stock loader. Tells on the last line (JSON) what was seen.
//   node look_and_choose.mjs '{"url", "playwright", "chromium", "shots", "workflow", "name", "seconds", "vue", "palette"}'
// name: under which the LoRA is kept.
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
  { executablePath: task.chromium, headless: true, args: flags, viewport: { width: 1500, height: 900 } });
const seen = { consoleErrors: [], pageErrors: [] };
const limit = { timeout: task.seconds * 1000 };
const shot = (page, name) => page.screenshot({ path: join(task.shots, `${name}-${task.vue ? "vue" : "classic"}-${task.palette}.png`) });

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
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph && document.querySelector("canvas"), null, limit);
  await page.getByTestId("queue-button").waitFor(limit);
  await page.evaluate(async (address) => {
    const workflow = await (await fetch(address)).json();
    await window.app.loadGraphData(workflow, true, true, "chosen");
    const loader = window.LiteGraph.createNode("LoraLoader");
    window.app.graph.add(loader);
    const grid = window.app.graph._nodes.find((node) => node.type === "EpochWeightGrid");
    grid.widgets.find((widget) => widget.name === "grid_desk").callback();
  }, task.workflow);

  const cells = page.locator(".atelier-cells button");
  await cells.first().waitFor(limit);
  await page.waitForFunction(() => [...document.querySelectorAll(".atelier-cells img")].slice(0, 4).every((image) => image.naturalWidth),
    null, limit);
  const at = (place) => page.locator(`.atelier-cells button[data-at="${place}"]`);
  const state = () => page.evaluate(() => ({
    said: document.querySelector(".atelier-desk output").innerText,
    large: [...document.querySelectorAll(".atelier-large figcaption")].map((caption) => caption.innerText),
    pressed: [...document.querySelectorAll('.atelier-cells button[aria-pressed="true"]')].map((button) => button.dataset.place),
    stars: [...document.querySelectorAll(".atelier-favourite")].map((button) => button.dataset.place),
    disabled: [...document.querySelectorAll(".atelier-desk button")].filter((button) => button.disabled).map((button) => button.innerText),
    focused: document.activeElement?.dataset?.at ?? null,
  }));
  seen.cells = await cells.count();
  seen.unnamed = await page.evaluate(() => [...document.querySelectorAll(".atelier-desk button, .atelier-desk input, .atelier-desk select")]
    .filter((control) => !(control.getAttribute("aria-label") || control.innerText || control.closest("label"))).length);
  seen.opened = await state();
  await at("1,0").focus();
  for (const key of ["ArrowRight", "ArrowDown", "Enter"]) await page.keyboard.press(key);
  await page.waitForFunction(() => document.querySelector(".atelier-large img")?.naturalWidth, null, limit);
  seen.walked = await state();
  await at("0,0").click({ modifiers: ["Shift"] });
  seen.compared = await state();
  await page.locator('.atelier-desk input[type="range"]').fill("230");
  seen.width = await at("1,0").evaluate((button) => button.getBoundingClientRect().width);
  await page.waitForTimeout(500);
  await shot(page, "compared");
  await at("2,1").focus();
  await page.keyboard.press("f");
  await page.waitForFunction(() => document.querySelector(".atelier-favourite"), null, limit);
  seen.marked = await state();

  await page.locator('.atelier-desk input[type="text"]').fill(task.name);
  const into = page.locator(".atelier-desk select").last();
  const loader = await page.evaluate(() => {
    const node = window.app.graph._nodes.find((n) => n.type === "LoraLoader" && !n.outputs.some((output) => output.links?.length));
    return String(node.id);
  });
  const label = (await into.locator("option").allInnerTexts()).find((option) => option.endsWith(`(#${loader})`));
  await into.selectOption({ label });
  await page.locator(".atelier-desk button", { hasText: "Use this one" }).click();
  await page.waitForFunction((name) => document.querySelector(".atelier-desk output").innerText.includes(`${name}.safetensors`), task.name, limit);
  seen.used = await state();
  await shot(page, "used");
  seen.loader = await page.evaluate((id) => {
    const node = window.app.graph.getNodeById(Number(id)) ?? window.app.graph.getNodeById(id);
    const widgets = Object.fromEntries(node.widgets.map((widget) => [widget.name, widget]));
    const listed = widgets.lora_name.options.values;
    return {
      lora: widgets.lora_name.value, model: widgets.strength_model.value, clip: widgets.strength_clip.value,
      listed: (typeof listed === "function" ? listed() : listed).includes(widgets.lora_name.value),
    };
  }, loader);
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => !document.querySelector(".atelier-desk"), null, limit);
  // A mark is kept for whoever looks next.
  await page.evaluate(() => {
    window.app.graph._nodes.find((node) => node.type === "EpochWeightGrid").widgets.find((widget) => widget.name === "grid_desk").callback();
  });
  await page.waitForFunction(() => document.querySelector(".atelier-favourite"), null, limit);
  seen.again = await state();
  await at("2,1").focus();
  await page.keyboard.press("f");
  await page.waitForFunction(() => !document.querySelector(".atelier-favourite"), null, limit);
} catch (error) {
  const page = context.pages()[0];
  if (page) await shot(page, "failed").catch(() => {});
  throw error;
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
console.log(JSON.stringify(seen));
