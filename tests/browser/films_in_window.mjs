// Films as a person meets them: listed in the window of pictures and captions, each once; their captions written, found and asked
// again; one taken out and put back, another dropped on the window; and films that are brought while the node doesn't use them.
// widgets: {node type: {widget: value}}. films: {name: base64}, which are dropped.
import { drive, listen, press, set } from "./page.mjs";

await drive({ width: 1366, height: 768 }, async ({ page, task, seen, limit, shot }) => {
  await page.evaluate(() => {
    const { graph } = window.app;
    graph.clear();
    const [load, caption] = ["LoadDataset", "AutoCaption"].map((type, i) => {
      const node = window.LiteGraph.createNode(type);
      graph.add(node);
      node.pos = [60 + 480 * i, 60];
      node.setSize([440, node.size[1]]);
      return node;
    });
    load.connect(0, caption, caption.inputs.findIndex((input) => input.name === "dataset"));
  });
  seen.unset = await set(page, task.widgets);
  const button = (name) => page.locator(".atelier-dialog button", { hasText: name });
  const named = (label) => page.getByLabel(label, { exact: true });
  const said = (text) =>
    page.waitForFunction((wanted) => document.querySelector(".atelier-dialog output").innerText.includes(wanted), text, limit);
  const images = () =>
    page.waitForFunction(() => [...document.querySelectorAll(".atelier-shown img, .atelier-made img")].every((image) => image.naturalWidth), null, limit);
  const state = () => page.evaluate(() => ({
    rows: Object.fromEntries([...document.querySelectorAll(".atelier-pictures li")].map((item) => [item.querySelector("b").innerText, {
      facts: item.querySelector(".atelier-axis").innerText, caption: item.querySelector("textarea").value, hidden: item.hidden,
      isFilm: Boolean(item.querySelector(".atelier-is-film")),
      turns: [...item.querySelectorAll("[data-quarters]")].map((one) => [one.disabled, one.title]),
    }])),
    said: document.querySelector(".atelier-dialog output").innerText,
    tags: [...document.querySelectorAll(".atelier-tags button")].map((one) => one.innerText),
  }));
  const open = async () => {
    await press(page, "LoadDataset", "captions_desk");
    await page.locator(".atelier-pictures textarea").first().waitFor(limit);
    await images();
  };
  const close = async () => {
    await button("Close").click();
    await page.waitForFunction(() => !document.querySelector(".atelier-dialog"), null, limit);
  };
  const drop = (selector, files) => page.evaluate(async ([where, wanted]) => {
    const data = new DataTransfer();
    for (const [name, base64] of Object.entries(wanted)) data.items.add(new File([Uint8Array.from(atob(base64), (one) => one.charCodeAt(0))], name));
    const element = where ? document.querySelector(where) : null;
    if (element) for (const type of ["dragover", "drop"]) element.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
    else await window.app.graph._nodes.find((one) => one.type === "LoadDataset").onDragDrop(new DragEvent("drop", { dataTransfer: data }));
  }, [selector, files]);

  await open();
  seen.opened = await state();
  await shot("films");
  await page.locator(".atelier-tags button", { hasText: "without caption" }).click();
  seen.without = await state();
  await page.locator(".atelier-tags button", { hasText: "without caption" }).click();

  await named("Caption of run.mp4").fill("someone runs");
  await named("Caption of run.mp4").blur();
  await button("Save").click();
  await said("saved");
  await named("Take walk.mp4 out of the folder").click();
  await said("walk.mp4 was put aside");
  seen.out = await state();
  await button("Undo").click();
  await page.waitForFunction(() => document.querySelectorAll(".atelier-pictures li").length === 3, null, limit);
  await images();
  seen.back = await state();

  await drop(".atelier-dialog", task.films);
  await said("came into");
  await images();
  seen.dropped = await state();
  await shot("films-dropped");
  await named("Ask for the caption of walk.mp4 again").click();
  await said("walk.mp4 has a new caption, not saved yet");
  seen.again = await state();
  page.on("dialog", (dialog) => dialog.accept());
  await close();

  // The run waits between captioning and training, and a film's caption is asked meanwhile.
  await listen(page);
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.app.graph._nodes.find((one) => one.type === "AutoCaption").widgets
    .find((one) => one.name === "review")?.element.hidden === false, null, limit);
  await open();
  seen.paused = await state();
  await named("Ask for the caption of walk.mp4 again").click();
  await said("walk.mp4 has a new caption, not saved yet");
  await close();
  await page.locator("button", { hasText: "Go on" }).evaluate((one) => one.click());
  await page.waitForFunction(() => window.ended, null, limit);
  seen.ended = await page.evaluate(() => window.ended.name);

  await set(page, { LoadDataset: { clip_frames: "" } });
  await open();
  await drop(".atelier-dialog", Object.fromEntries(Object.entries(task.films).filter(([name]) => name.endsWith(".mp4")).map(([name, data]) => [`unused ${name}`, data])));
  await said("came into");
  seen.unused = await state();
  await shot("films-unused");
  await close();
  await drop(null, Object.fromEntries(Object.entries(task.films).map(([name, data]) => [`another ${name}`, data])));
  await button("From ComfyUI").click();
  await page.locator(".atelier-made button").first().waitFor(limit);
  await images();
  seen.made = await page.evaluate(() => [...document.querySelectorAll(".atelier-made button")].map((one) => [one.title, Boolean(one.querySelector(".atelier-is-film"))]));
  await page.locator(".atelier-made button").first().click();
  await shot("films-adding");
  await page.locator(".atelier-dialog button", { hasText: /^Add \d/ }).click();
  await said("came into");
  seen.added = await page.locator(".atelier-dialog output").innerText();
  await shot("films-added");
});
