// Edits captions as a person would: opens the dialog from the node, types into one, adds a tag to all, takes that back and saves;
// turns a picture, takes it out and puts it back, drops others on the window, takes that back, drops them on the window and on the node, and adds what ComfyUI has drawn;
// has one caption asked again, lets a run go on that waits for its captions to be read, and looks at a crop around a head.
// faces: a folder with one.
// workflow: address of the workflow's JSON on the server. widgets: {node type: {widget: value}}, set before.
import { drive, listen, load, press, set } from "./page.mjs";

await drive({ width: 1366, height: 768 }, async ({ page, task, seen, limit, shot, ready }) => {
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
  await said("Pictures shown");
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

  const facts = () => page.evaluate(() => [...document.querySelectorAll(".atelier-words")].map((one) => one.innerText.split("\n").slice(0, 2).join(": ")));
  const named = (label) => page.getByLabel(label, { exact: true });
  await words.nth(1).fill("not saved yet");
  await words.nth(1).blur();
  await named("Turn black circle.png to the right").click();
  await said("black circle.png was turned");
  seen.turned = { facts: await facts(), ...(await state()) };
  await named("Take red square.png out of the folder").click();
  await said("was put aside");
  seen.out = await state();
  await shot("put_aside");
  for (const expected of [4, 4]) {
    await button("Undo").click();
    await page.waitForFunction((count) => document.querySelectorAll(".atelier-pictures li").length === count, expected, limit);
    await said("also in the files");
    await page.evaluate(() => { document.querySelector(".atelier-dialog output").textContent = ""; });
  }
  seen.back = { facts: await facts(), ...(await state()) };

  // A drop as the browser makes it, of files that are made here.
  const drop = (selector, files) => page.evaluate(async ([where, wanted]) => {
    const data = new DataTransfer();
    for (const [name, colour] of wanted) {
      const canvas = Object.assign(document.createElement("canvas"), { width: 96, height: 64 });
      const brush = canvas.getContext("2d");
      brush.fillStyle = colour;
      brush.fillRect(0, 0, 96, 64);
      const blob = name.endsWith(".png") ? await new Promise((done) => canvas.toBlob(done)) : colour;
      data.items.add(new File([blob], name));
    }
    const element = where ? document.querySelector(where) : null;
    if (element) for (const type of ["dragover", "drop"]) element.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
    else {
      const node = window.app.graph._nodes.find((one) => one.type === "LoadDataset");
      const event = new DragEvent("drop", { dataTransfer: data });
      return [node.onDragOver(event), await node.onDragDrop(event)];
    }
  }, [selector, files]);
  const brought = [["red square.png", "purple"], ["red square.txt", "a purple one"], ["film.mp4", "x"]];
  await drop(".atelier-dialog", brought);
  await said("came into");
  seen.dropped = await state();
  await shot("dropped");
  await button("Undo").click();
  await said("put aside");
  seen.putAside = await state();
  await shot("came-back");
  await drop(".atelier-dialog", brought);
  await said("came into");
  page.on("dialog", (dialog) => dialog.accept());
  await button("Close").click();
  await page.waitForFunction(() => !document.querySelector(".atelier-dialog"), null, limit);

  seen.accepted = await drop(null, [["new one.png", "orange"]]);
  await page.getByLabel("Into the folder").fill(`${task.widgets.LoadDataset.folder}/25_orange`);
  await button("From ComfyUI").click();
  await page.locator(".atelier-made button").first().click();
  await page.waitForFunction(() => [...document.querySelectorAll(".atelier-made img")].every((image) => image.naturalWidth), null, limit);
  await shot("adding");
  await button("Add 2").click();
  await said("came into");
  seen.adding = { said: await page.locator(".atelier-dialog output").innerText(), folder: await page.evaluate(() =>
    window.app.graph._nodes.find((one) => one.type === "LoadDataset").widgets.find((widget) => widget.name === "folder").value) };
  await button("Close").click();
  await page.waitForFunction(() => !document.querySelector(".atelier-dialog"), null, limit);

  // One caption is asked again, and the run waits between captioning and training.
  await page.evaluate((folder) => {
    const { graph } = window.app;
    graph.clear();
    const [load, caption] = ["LoadDataset", "AutoCaption"].map((type, i) => {
      const node = window.LiteGraph.createNode(type);
      graph.add(node);
      node.pos = [60 + 480 * i, 60];
      node.setSize([440, node.size[1]]);
      return node;
    });
    load.widgets.find((widget) => widget.name === "folder").value = folder;
    load.connect(0, caption, caption.inputs.findIndex((input) => input.name === "dataset"));
    for (const [name, value] of Object.entries({ captioner: "file name", pattern: "drawn, {name}", pause: true })) {
      caption.widgets.find((widget) => widget.name === name).value = value;
    }
  }, task.widgets.LoadDataset.folder);
  await press(page, "LoadDataset", "captions_desk");
  await words.first().waitFor(limit);
  await named("Ask for the caption of black circle.png again").click();
  await said("black circle.png has a new caption, not saved yet");
  seen.again = await state();
  await button("Close").click();
  await page.waitForFunction(() => !document.querySelector(".atelier-dialog"), null, limit);
  await listen(page);
  await page.getByTestId("queue-button").click();
  // The canvas is drawn at half its size.
  const panel = () => page.evaluate(() => {
    const element = window.app.graph._nodes.find((one) => one.type === "AutoCaption").widgets.find((one) => one.name === "review")?.element;
    const box = element?.getBoundingClientRect();
    return element && { text: element.innerText, hidden: element.hidden, visible: box.width > 100 && box.height > 80, ended: window.ended };
  });
  const waits = (hidden) => page.waitForFunction((wanted) => {
    const node = window.app.graph._nodes.find((one) => one.type === "AutoCaption");
    return node?.widgets.find((one) => one.name === "review")?.element.hidden === wanted;
  }, hidden, limit);
  await waits(false);
  await page.evaluate(() => { Object.assign(window.app.canvas.ds, { scale: 0.5, offset: [60, 60] }); window.app.canvas.setDirty(true, true); });
  await page.waitForTimeout(1500);
  seen.paused = await panel();
  await shot("paused");
  await page.reload();
  await ready();
  await waits(false); // also on a page that was not there when it began
  await press(page, "LoadDataset", "captions_desk");
  await words.first().waitFor(limit);
  await named("Ask for the caption of green square.png again").click();
  await said("The captioner says the same of green square.png again");
  await button("Close").click();
  await page.waitForFunction(() => !document.querySelector(".atelier-dialog"), null, limit);
  await listen(page);
  await page.locator("button", { hasText: "Go on" }).evaluate((one) => one.click());
  await page.waitForFunction(() => window.ended, null, limit);
  await waits(true);
  seen.went = { ...(await panel()), ended: await page.evaluate(() => window.ended.name) };

  // The crop around a head, as the window frames it.
  seen.unset = [...seen.unset, ...(await set(page, { LoadDataset: { folder: task.faces, crop: "head", resolution: 128 } }))];
  await press(page, "LoadDataset", "captions_desk");
  await page.waitForFunction(() => document.querySelector(".atelier-shown img")?.naturalWidth, null, limit);
  seen.head = await page.evaluate(() => {
    const [image, frame] = [".atelier-shown img", ".atelier-shown span"].map((one) => document.querySelector(one).getBoundingClientRect());
    return { left: (frame.left - image.left) / image.width, width: frame.width, height: frame.height, facts: document.querySelector(".atelier-words").innerText };
  });
  await shot("heads");
});
