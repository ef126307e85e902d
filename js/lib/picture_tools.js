// What can be done to one picture of "Pictures and captions": turned, taken out of the folder, asked for its caption again.
import { again } from "./again.js";
import { make } from "./dom.js";
import { ask } from "./server.js";
import { text } from "./text.js";

const QUARTERS = 4;

const place = ({ folder, caption_extension: extension, nested }) => ({ folder, extension, nested: Boolean(nested) });

async function turn(desk, picture, quarters) {
  await ask("pictures/turn", { ...place(desk.settings), pictures: [picture], quarters });
  await desk.load();
}

/** The buttons of a picture. `desk`: the window, with its settings, past, load() and said. */
export function tools(desk, picture) {
  const button = (key, sign, act, quarters) =>
    make("button", {
      type: "button", title: text(`${key}Help`), "aria-label": text(key, { picture }), "data-quarters": quarters, click: () => desk.tried(act),
    }, sign);
  const turned = async (quarters) => {
    await turn(desk, picture, quarters);
    desk.rows.get(picture)?.item.querySelector(`[data-quarters="${quarters}"]`)?.focus(); // which is another button now
    desk.past.push({ undo: () => turn(desk, picture, QUARTERS - quarters) });
    desk.said.textContent = text("turned", { picture });
  };
  const out = async () => {
    const { entry } = await ask("pictures/remove", { ...place(desk.settings), pictures: [picture] });
    desk.past.push({
      undo: async () => {
        await ask("pictures/restore", { ...place(desk.settings), entry });
        await desk.load();
      },
    });
    await desk.load();
    desk.said.textContent = text("takenOut", { picture });
  };
  const asked = async () => {
    desk.said.textContent = text("askingFor", { picture });
    const caption = await again(desk.node, desk.settings.folder, picture);
    const row = desk.rows.get(picture);
    if (!row) return;
    const before = row.words.value;
    if (before !== caption) desk.past.push({ captions: new Map([[picture, before]]) });
    desk.put([[picture, caption]]);
    desk.said.textContent = text(before === caption ? "askedSame" : "askedAgain", { picture });
  };
  return make(
    "div", { class: "atelier-tools" }, button("askAgain", "✎", asked), button("turnLeft", "⟲", () => turned(3), 3), button("turnRight", "⟳", () => turned(1), 1),
    button("takeOut", "✕", out),
  );
}
