// Looks at a grid that was drawn and chooses from it as a person would: opens the gallery from the node, walks with the keyboard,
// compares two cells, marks one, and puts its LoRA into a stock loader.
// workflow: address of the workflow's JSON on the server. name: under which the LoRA is kept.
import { drive, load, press } from "./page.mjs";

await drive({ width: 1366, height: 768 }, async ({ page, task, seen, limit, shot }) => {
  await load(page, task.workflow, "chosen");
  await page.evaluate(() => window.app.graph.add(window.LiteGraph.createNode("LoraLoader")));
  await press(page, "EpochWeightGrid", "grid_desk");

  const cells = page.locator(".atelier-cells button");
  await cells.first().waitFor(limit);
  await page.waitForFunction(() => [...document.querySelectorAll(".atelier-cells img")].slice(0, 4).every((image) => image.naturalWidth),
    null, limit);
  const at = (place) => page.locator(`.atelier-cells button[data-at="${place}"]`);
  const state = () => page.evaluate(() => ({
    said: document.querySelector(".atelier-dialog output").innerText,
    large: [...document.querySelectorAll(".atelier-large figcaption")].map((caption) => caption.innerText),
    pressed: [...document.querySelectorAll('.atelier-cells button[aria-pressed="true"]')].map((button) => button.dataset.place),
    stars: [...document.querySelectorAll(".atelier-favourite")].map((button) => button.dataset.place),
    disabled: [...document.querySelectorAll(".atelier-dialog button")].filter((button) => button.disabled).map((button) => button.innerText),
    focused: document.activeElement?.dataset?.at ?? null,
  }));
  seen.cells = await cells.count();
  seen.unnamed = await page.evaluate(() => [...document.querySelectorAll(".atelier-dialog button, .atelier-dialog input, .atelier-dialog select")]
    .filter((control) => !(control.getAttribute("aria-label") || control.innerText || control.closest("label"))).length);
  seen.opened = await state();
  seen.filled = await page.evaluate(() => {
    const [place, table, dialog] = [".atelier-gallery > .atelier-scroll", ".atelier-cells", ".atelier-dialog"].map((name) => document.querySelector(name).getBoundingClientRect());
    return { table: table.width / place.width, dialog: dialog.width / window.innerWidth, cell: document.querySelector(".atelier-cells td button").offsetWidth };
  });
  await shot("grid-opened");
  await at("1,0").focus();
  for (const key of ["ArrowRight", "ArrowDown", "Enter"]) await page.keyboard.press(key);
  await page.waitForFunction(() => document.querySelector(".atelier-large img")?.naturalWidth, null, limit);
  seen.walked = await state();
  await at("0,0").click({ modifiers: ["Shift"] });
  seen.compared = await state();
  await page.locator('.atelier-dialog input[type="range"]').fill("230");
  seen.width = await at("1,0").evaluate((button) => button.getBoundingClientRect().width);
  await page.waitForTimeout(500);
  await shot("compared");
  await at("2,1").focus();
  await page.keyboard.press("f");
  await page.waitForFunction(() => document.querySelector(".atelier-favourite"), null, limit);
  seen.marked = await state();

  await page.locator('.atelier-dialog input[type="text"]').fill(task.name);
  const into = page.locator(".atelier-dialog select").last();
  const loader = await page.evaluate(() => {
    const node = window.app.graph._nodes.find((n) => n.type === "LoraLoader" && !n.outputs.some((output) => output.links?.length));
    return String(node.id);
  });
  const label = (await into.locator("option").allInnerTexts()).find((option) => option.endsWith(`(#${loader})`));
  await into.selectOption({ label });
  await page.locator(".atelier-dialog button", { hasText: "Use this one" }).click();
  await page.waitForFunction((name) => document.querySelector(".atelier-dialog output").innerText.includes(`${name}.safetensors`), task.name, limit);
  seen.used = await state();
  await shot("used");
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
  await page.waitForFunction(() => !document.querySelector(".atelier-dialog"), null, limit);
  // A mark is kept for whoever looks next.
  await press(page, "EpochWeightGrid", "grid_desk");
  await page.waitForFunction(() => document.querySelector(".atelier-favourite"), null, limit);
  seen.again = await state();
  await at("2,1").focus();
  await page.keyboard.press("f");
  await page.waitForFunction(() => !document.querySelector(".atelier-favourite"), null, limit);
});
