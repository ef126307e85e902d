// Watches a training in the canvas as a person would: looks at the recipe's curve, takes the preset of the model, queues, sees the
// loss move, reloads the page, asks for a file with the keyboard, stops and keeps; then compares
// it with an earlier run and deletes that one.
// workflow: address of the workflow's JSON on the server. widgets: {node type: {widget: value}}, set before queueing. old: name of the earlier run.
import { drive, listen, load, press, set } from "./page.mjs";

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
const values = (page, type) =>
  page.evaluate((wanted) => {
    const node = window.app.graph._nodes.find((n) => n.type === wanted);
    return Object.fromEntries(node.widgets.filter((w) => w.name).map((w) => [w.name, w.value]));
  }, type);
const points = () => (document.querySelector("[data-run] .atelier-smooth")?.getAttribute("points") ?? "").split(" ").filter(Boolean).length;
/** What the panel of the run says. */
const panel = (page) =>
  page.evaluate(() => {
    const place = document.querySelector("[data-run]");
    return {
      run: place?.dataset.run, state: place?.querySelector(".atelier-state")?.innerText, text: place?.innerText,
      chart: place?.querySelector(".atelier-plot").offsetHeight, account: place?.querySelector(".atelier-account").offsetHeight,
      told: place?.querySelector(".atelier-told").offsetHeight, hidden: place?.scrollHeight - place?.clientHeight,
      step: place?.querySelector("progress")?.value, samples: place?.querySelectorAll(".atelier-film img").length,
      buttons: [...(place?.querySelectorAll("button") ?? [])].map((b) => [b.innerText, b.getAttribute("aria-label"), b.disabled]),
    };
  });
/** From here on `window.pictures` tells how nodes stood whenever pictures on the way were shown in them: `count` of looks at each
 * kind of node, `outside`: panels that stuck out of their node, `host`: pictures that the host drew in a node of ours as well,
 * `covered`: pairs of nodes that lay over each other. */
const watchPictures = (page) =>
  page.evaluate(() => {
    const told = (window.pictures = { count: {}, outside: [], host: [], covered: [] });
    const since = {}; // for how many looks
    const LONG = 10; // looks, a second: the page measures and draws before it moves what stands on it
    const lasting = (kind, name, is) => {
      since[kind + name] = is ? (since[kind + name] ?? 0) + 1 : 0;
      if (since[kind + name] > LONG && !told[kind].includes(name)) told[kind].push(name);
    };
    const box = (node) => {
      const element = document.querySelector(`[data-node-id="${node.id}"]`);
      if (element) return element.getBoundingClientRect();
      const { canvas, ds } = window.app.canvas;
      const [frame, { scale, offset }] = [canvas.getBoundingClientRect(), ds];
      const [left, top] = [0, 1].map((i) => (node.pos[i] + offset[i]) * scale);
      return new DOMRect(frame.left + left, frame.top + top - 30 * scale, node.size[0] * scale, (node.size[1] + 30) * scale);
    };
    setInterval(() => {
      const nodes = window.app.graph._nodes;
      for (const node of nodes.filter((one) => ["TrainLoRA", "EpochWeightGrid"].includes(one.type))) {
        const around = box(node);
        for (const { name, element } of (node.widgets ?? []).filter((widget) => widget.element?.querySelector?.("img"))) {
          if (!element.offsetHeight) continue;
          told.count[node.type] = (told.count[node.type] ?? 0) + 1;
          const panel = element.getBoundingClientRect();
          lasting("outside", `${node.type}.${name}`, panel.bottom > around.bottom + 2 || panel.right > around.right + 2);
          const free = [...element.querySelectorAll("img")].find((image) => {
            let place = image.parentElement;
            while (place !== element && getComputedStyle(place).overflowY === "visible") place = place.parentElement;
            return getComputedStyle(place).overflowY === "visible" && image.getBoundingClientRect().bottom > panel.bottom + 2;
          });
          lasting("outside", `${node.type}.${name}: picture`, Boolean(free));
        }
        const beside = [...(document.querySelector(`[data-node-id="${node.id}"]`)?.querySelectorAll("img") ?? [])];
        lasting("host", node.type, node.imgs?.length || beside.some((image) => !image.closest(".atelier")));
        for (const other of nodes.filter((one) => one !== node)) {
          const its = box(other);
          const apart = its.left >= around.right || its.right <= around.left || its.top >= around.bottom - 2 || its.bottom <= around.top + 2;
          lasting("covered", `${node.type} and ${other.type} ${other.id}`, !apart);
        }
      }
    }, 100);
  });
/** Waits until a question to the server is answered with yes. */
async function answers(page, question, { timeout }) {
  for (const end = Date.now() + timeout; !(await page.evaluate(question)); await page.waitForTimeout(200)) {
    if (Date.now() > end) throw new Error(`never true: ${question}`);
  }
}

await drive({ width: 1500, height: 1000 }, async ({ page, task, seen, limit, shot, ready }) => {
  seen.unset = [];
  await load(page, task.workflow, "watched");

  // The recipe before anything is queued.
  await lookAt(page, "ConfigureLoRA");
  await page.waitForFunction(() => document.querySelector(".atelier-drawing[data-total] .atelier-rate"), null, limit);
  const outlook = () => page.evaluate(() => {
    const place = document.querySelector(".atelier-drawing[data-total]");
    return { text: place.closest(".atelier").innerText, total: place.dataset.total, label: place.getAttribute("aria-label") };
  });
  seen.outlook = await outlook();
  seen.unset.push(...await set(page, { ConfigureLoRA: { preset: "suited to the model" } }));
  const told = () => page.evaluate(() => document.querySelector(".atelier-set")?.parentElement.innerText ?? "");
  await page.waitForFunction(() => /family/.test(document.querySelector(".atelier-set")?.parentElement.innerText ?? ""), null, limit);
  seen.suited = { ...(await values(page, "ConfigureLoRA")), note: await told() };
  await shot("recipe");
  // The tiny model is not for pictures of a published one's size.
  await page.evaluate(() => [...document.querySelectorAll(".atelier-set ~ .atelier-row button")].forEach((button) => button.click()));
  await page.waitForFunction(() => /as it was before/.test(document.querySelector(".atelier-set").parentElement.innerText), null, limit);
  seen.unset.push(...await set(page, { ConfigureLoRA: { warmup_steps: 10, max_steps: 5, schedule: "cosine" } }));
  await page.waitForFunction(() => document.querySelector(".atelier-bad")?.innerText.includes("warmup"), null, limit);
  seen.contradiction = (await outlook()).text;
  await shot("contradiction");
  seen.unset.push(...await set(page, {
    ConfigureLoRA: { warmup_steps: 0, max_steps: 0, schedule: "constant", learning_rate: 1, epochs: 12500, save_every: 1 },
    EpochWeightGrid: { which_epochs: "20000" },
  }));
  await page.waitForFunction(() => [...document.querySelectorAll(".atelier-warning")].some((one) => one.textContent.includes("which_epochs")), null, limit);
  await page.waitForTimeout(800);
  seen.cautions = await page.evaluate(() => [...document.querySelectorAll(".atelier-warning")].map((one) => one.textContent));
  seen.ofGrid = await page.evaluate(() => {
    const grid = window.app.graph._nodes.find((n) => n.type === "EpochWeightGrid");
    return grid.widgets.find((w) => w.name === "told")?.element.innerText;
  });
  seen.cautioned = (await outlook()).text;
  await shot("cautions");

  // What cannot be read is refused when it is queued, at its own widget.
  seen.unset.push(...await set(page, { ConfigureLoRA: { sweep: "soon" }, EpochWeightGrid: { which_epochs: "soon" } }));
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(() => window.app.lastNodeErrors, null, limit);
  seen.refused = await page.evaluate(() => Object.values(window.app.lastNodeErrors).map(({ class_type: type, errors }) => [type, errors]));
  await page.waitForTimeout(800);
  await shot("refused");
  await page.keyboard.press("Escape");
  seen.unset.push(...await set(page, { ConfigureLoRA: { sweep: "" } }));
  await answers(page, () => fetch("/queue").then((answer) => answer.json()).then((queue) => !queue.queue_running.length && !queue.queue_pending.length), limit);

  // The run.
  seen.unset.push(...await set(page, task.widgets));
  await lookAt(page, "TrainLoRA");
  await listen(page);
  await watchPictures(page);
  await page.getByTestId("queue-button").click();
  await page.waitForFunction(`(${points})() > 5`, null, limit);
  seen.first = await panel(page);
  await page.waitForFunction(`(${points})() > 30`, null, limit);
  seen.later = await panel(page);
  await shot("training");
  seen.account = await page.evaluate(() => {
    const place = document.querySelector("[data-run] .atelier-account");
    for (const fold of place.querySelectorAll("details")) fold.open = true;
    return place.innerText;
  });
  await page.waitForTimeout(1000);
  await shot("account");
  await page.evaluate(() => document.querySelectorAll("[data-run] .atelier-account details").forEach((fold) => (fold.open = false)));
  await page.waitForTimeout(500);

  // The chart: values on its axes, what is under the pointer, smoothing and the log scale.
  const curve = () => page.evaluate(() => document.querySelector("[data-run] .atelier-smooth").getAttribute("points"));
  const axes = () => page.evaluate(() => ["values:not(.atelier-rates)", "rates", "steps"].map((kind) =>
    [...document.querySelectorAll(`[data-run] .atelier-${kind} span`)].map((span) => span.textContent)));
  seen.axes = await axes();
  const area = page.locator("[data-run] .atelier-area");
  const box = await area.boundingBox();
  await page.mouse.move(box.x + 0.4 * box.width, box.y + 0.4 * box.height);
  await page.locator("[data-run] .atelier-tip:not([hidden])").waitFor(limit);
  seen.hovered = await page.locator("[data-run] .atelier-tip").innerText();
  await shot("hovered");
  await area.focus();
  seen.walked = [];
  for (let i = 0; i < 2; i++) {
    await page.keyboard.press("ArrowLeft");
    seen.walked.push(await page.locator("[data-run] .atelier-tip").innerText());
  }
  const scales = page.locator("[data-run] .atelier-scales input");
  seen.curves = { usual: await curve() };
  await scales.first().focus();
  for (let i = 0; i < 5; i++) await page.keyboard.press("ArrowLeft");
  seen.curves.rough = await curve();
  seen.level = await page.locator("[data-run] .atelier-scales").innerText();
  await scales.nth(1).press("Space");
  seen.curves.log = await curve();
  seen.logAxes = await axes();

  seen.trained = await page.evaluate(() => window.pictures);
  await page.reload();
  await ready();
  await page.waitForTimeout(1500);
  seen.keptLevel = await page.locator("[data-run] .atelier-scales").innerText();
  seen.restored = await page.evaluate(() => window.app.graph._nodes.map((n) => n.type));
  await lookAt(page, "TrainLoRA");
  await page.waitForFunction(`(${points})() > 30`, null, limit);
  seen.reloaded = await panel(page);
  await listen(page);
  await watchPictures(page);

  // By the keyboard alone.
  await page.locator("[data-run] select").focus();
  for (let i = 0; i < 12 && !(await page.evaluate(() => document.activeElement?.innerText?.startsWith("Save now"))); i++) {
    await page.keyboard.press("Tab");
  }
  await page.keyboard.press("Enter");
  await answers(page, () => fetch("/lora_atelier/runs/" + document.querySelector("[data-run]").dataset.run)
    .then((answer) => answer.json()).then((run) => run.saved.some((file) => file.kind === "step")), limit);
  await page.locator("[data-run] button", { hasText: "Stop and keep" }).click();
  await page.waitForFunction(() => window.ended, null, limit);
  seen.ended = await page.evaluate(() => window.ended);
  await page.waitForFunction(() => /finished/.test(document.querySelector("[data-run] .atelier-state")?.innerText ?? ""), null, limit);
  await page.waitForTimeout(1500);
  seen.finished = await panel(page);
  seen.strips = await page.evaluate(() => [...document.querySelectorAll("[data-run] .atelier-film")].map((film) =>
    [film.previousElementSibling?.textContent, [...film.querySelectorAll("li")].map((one) => one.innerText.trim())]));
  await shot("finished");
  seen.drawn = await page.evaluate(() => window.pictures);
  seen.told = await page.evaluate(() =>
    window.app.graph._nodes.find((n) => n.type === "EpochWeightGrid").widgets.find((w) => w.name === "told").element.innerText);
  await lookAt(page, "EpochWeightGrid");
  await shot("drawn");
  await lookAt(page, "PreviewImage");
  await shot("letters");

  // The window of runs: two curves, a download, a folder, a run that is deleted.
  await page.setViewportSize({ width: 1366, height: 768 });
  await press(page, "TrainLoRA", "runs_desk");
  const line = (name) => page.locator(`tr[data-run-name="${name}"]`);
  await line(task.old).waitFor(limit);
  await line(task.old).locator("input").check();
  await page.waitForFunction(() => document.querySelectorAll(".atelier-compared .atelier-smooth").length === 2, null, limit);
  seen.lines = await page.evaluate(() => [...document.querySelectorAll(".atelier-runs tbody tr")].map((row) => row.innerText.replace(/\s+/g, " ")));
  await page.locator(".atelier-compared .atelier-area").hover({ position: { x: 60, y: 60 } });
  seen.compared = await page.locator(".atelier-compared .atelier-tip").innerText();
  await shot("runs");
  await page.getByRole("button", { name: "Open folder" }).click();
  await page.waitForFunction(() => document.querySelector(".atelier-runs-all > input").value, null, limit);
  seen.path = await page.evaluate(() => document.querySelector(".atelier-runs-all > input").value);
  const [download] = await Promise.all([page.waitForEvent("download", limit), page.getByRole("button", { name: "Download" }).click()]);
  seen.download = download.suggestedFilename();
  await line(task.old).click();
  await page.locator("select[title='What is deleted']").selectOption("all");
  for (const answer of ["dismiss", "accept"]) {
    const asked = page.waitForEvent("dialog", limit).then((dialog) => {
      seen.question = dialog.message();
      return dialog[answer]();
    });
    await Promise.all([asked, page.getByRole("button", { name: "Delete …" }).click()]);
    if (answer === "dismiss") seen.kept = await line(task.old).count();
  }
  await line(task.old).waitFor({ state: "detached", ...limit });
  await page.waitForFunction(() => /freed/.test(document.querySelector(".atelier-dialog output").innerText), null, limit);
  seen.deleted = await page.locator(".atelier-dialog output").innerText();
  await shot("deleted");
});
