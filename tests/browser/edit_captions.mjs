// Edits captions as a person would: opens the dialog from the node, types into one, adds a tag to all, takes that back and saves.
// workflow: address of the workflow's JSON on the server. widgets: {node type: {widget: value}}, set before.
import { drive, load, press, set } from "./page.mjs";

await drive({ width: 1300, height: 850 }, async ({ page, task, seen, limit, shot }) => {
  await load(page, task.workflow, "captions");
  seen.unset = await set(page, task.widgets);
  await press(page, "LoadDataset", "captions_desk");
  const words = page.locator(".atelier-pictures textarea");
  await words.first().waitFor(limit);
  await page.waitForFunction(() => [...document.querySelectorAll(".atelier-shown img")].every((image) => image.naturalWidth), null, limit);
  const state = () => page.evaluate(() => ({
    captions: [...document.querySelectorAll(".atelier-pictures textarea")].map((area) => area.value),
    shown: [...document.querySelectorAll(".atelier-pictures li")].filter((item) => !item.hidden).length,
    said: document.querySelector(".atelier-dialog output").innerText,
    disabled: [...document.querySelectorAll(".atelier-dialog button")].filter((button) => button.disabled).map((button) => button.innerText),
  }));
  const button = (name) => page.locator(".atelier-dialog button", { hasText: name });
  const said = (text) =>
    page.waitForFunction((wanted) => document.querySelector(".atelier-dialog output").innerText.includes(wanted), text, limit);
  seen.unnamed = await page.evaluate(() => [...document.querySelectorAll(".atelier-dialog button, .atelier-dialog input, .atelier-dialog select, .atelier-dialog textarea")]
    .filter((control) => !(control.getAttribute("aria-label") || control.innerText)).length);
  seen.opened = await state();

  await words.first().fill("a circle,\nby hand");
  await words.first().blur();
  await page.getByLabel("Tags between commas, or words to replace").fill("drawn");
  await button("Apply to all shown").click();
  await said("changed, not saved yet");
  seen.added = await state();
  await button("Undo").click();
  await said("Taken back");
  seen.undone = await state();
  await shot("captions");
  const tags = () => page.evaluate(() => [...document.querySelectorAll(".atelier-tags button")].map((one) => one.innerText));
  seen.tags = await tags();
  await page.getByLabel("Only captions with this in a tag").fill("by ha");
  await said("pictures shown");
  seen.filtered = await state();
  await page.getByLabel("Only captions with this in a tag").fill("");
  await page.locator(".atelier-tags button", { hasText: "without caption" }).click();
  seen.without = await state();
  await page.waitForTimeout(300);
  await shot("captions-tags");
  await page.locator(".atelier-tags button", { hasText: "without caption" }).click();
  await page.locator(".atelier-tags button", { hasText: "red (1)" }).click();
  seen.red = await state();
  await page.locator(".atelier-tags button", { hasText: "red (1)" }).click();
  await button("Save").click();
  await said("saved");
  seen.saved = await state();
  await button("Undo").click();
  await said("also in the files");
  seen.takenBack = await state(); // what was typed is gone with it: there is nothing left to undo
  await words.first().fill("a circle, by hand");
  await words.first().blur();
  await button("Save").click();
  await said("saved");
  await button("Close").click();
  await page.waitForFunction(() => !document.querySelector(".atelier-dialog"), null, limit);
});
