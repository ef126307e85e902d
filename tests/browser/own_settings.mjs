// Saves the nodes' values as a preset of one's own, changes them, takes the preset over, and reads another trainer's configuration.
// workflow: address of the workflow's JSON on the server. file: path of the configuration. preset: name of the preset.
import { drive, load, press, set } from "./page.mjs";

const widget = (page, type, name) =>
  page.evaluate(([wanted, key]) => window.app.graph._nodes.find((n) => n.type === wanted).widgets.find((w) => w.name === key).value, [type, name]);
const dialog = (page) => page.locator("dialog.atelier-dialog[open]");

await drive({ width: 1366, height: 768 }, async ({ page, task, seen, limit, shot }) => {
  await load(page, task.workflow, "settings");
  seen.unset = await set(page, { ConfigureLoRA: { rank: 12 }, EpochWeightGrid: { steps: 17 } });
  await press(page, "ConfigureLoRA", "settings");
  await dialog(page).waitFor(limit);
  await dialog(page).getByRole("textbox", { name: "Name of the preset" }).fill(task.preset);
  await dialog(page).getByRole("button", { name: "Save", exact: true }).click();
  await page.waitForFunction(() => /is saved/.test(document.querySelector("dialog output")?.textContent), null, limit);
  seen.listed = await dialog(page).locator("select option").allTextContents();
  await dialog(page).getByRole("button", { name: "Close" }).click();

  seen.unset.push(...await set(page, { ConfigureLoRA: { rank: 99, name: "kept" }, EpochWeightGrid: { steps: 3 } }));
  await press(page, "ConfigureLoRA", "settings");
  await page.waitForFunction((name) => [...document.querySelectorAll("dialog select option")].some((o) => o.textContent === name), task.preset, limit);
  await dialog(page).locator("select").selectOption({ label: task.preset });
  await page.waitForFunction(() => /rank: 12/.test(document.querySelector("dialog .atelier-scroll").innerText), null, limit);
  await dialog(page).getByRole("button", { name: "Take over" }).click();
  seen.own = [await widget(page, "ConfigureLoRA", "rank"), await widget(page, "EpochWeightGrid", "steps"), await widget(page, "ConfigureLoRA", "name")];

  seen.unset.push(...await set(page, { ConfigureLoRA: { highest_level: 0.7 } }));
  await page.evaluate((start) => {
    window.app.graph._nodes.find((n) => n.type === "ConfigureLoRA").properties.lora_atelier_start = start;
  }, { model: "SDXL", subject: "person", memory: "24 GB" });
  await press(page, "ConfigureLoRA", "settings");
  await dialog(page).locator("input[type=file]").setInputFiles(task.file);
  await page.waitForFunction(() => /no counterpart/.test(document.querySelector("dialog .atelier-scroll").innerText), null, limit);
  seen.told = await dialog(page).locator(".atelier-scroll").innerText();
  await shot("settings");
  await dialog(page).getByRole("button", { name: "Take over" }).click();
  seen.imported = [await widget(page, "ConfigureLoRA", "rank"), await widget(page, "LoadDataset", "resolution")];
  seen.reset = await widget(page, "ConfigureLoRA", "highest_level");
  seen.said = await page.evaluate(() => document.querySelector(".atelier-set").parentElement.textContent);
  await page.evaluate(() => [...document.querySelector(".atelier-set").parentElement.querySelectorAll("button")]
    .find((button) => button.textContent === "Take back").click());
  seen.back = [await widget(page, "ConfigureLoRA", "rank"), await widget(page, "ConfigureLoRA", "highest_level")];
  seen.start = await page.evaluate(() => window.app.graph._nodes.find((n) => n.type === "ConfigureLoRA").properties.lora_atelier_start);

  await press(page, "ConfigureLoRA", "settings");
  await page.waitForFunction((name) => [...document.querySelectorAll("dialog select option")].some((o) => o.textContent === name), task.preset, limit);
  await dialog(page).locator("select").selectOption({ label: task.preset });
  await dialog(page).getByRole("button", { name: "Delete" }).click();
  await dialog(page).getByRole("button", { name: "Delete" }).click();
  await page.waitForFunction((name) => ![...document.querySelectorAll("dialog select option")].some((o) => o.textContent === name), task.preset, limit);
});
