// What can be done to one picture of "Pictures and captions": turned, taken out of the folder, asked for its caption again.
import { again } from "./again.js";
import { make } from "./dom.js";
import { ask } from "./server.js";
import { text } from "./text.js";

const QUARTERS = 4;

/** Of the settings of a window, those by which the server finds its pictures. */
export const place = ({ folder, caption_extension: extension, nested, clip_frames = "" }) => ({ folder, extension, nested: Boolean(nested), clip_frames });

/** The sign on a small picture that it stands for a film. */
export const filmMark = (isFilm) => (isFilm ? [make("i", { class: "atelier-is-film", "aria-hidden": "true" }, "▶")] : []);

/** The buttons of a picture, or of a film, which isn't turned. `desk`: the window, with its settings, rows, past, load(), keep() and said. */
export function tools(desk, picture, isFilm = false) {
  const where = place(desk.settings); // also when a step is taken back after the window has turned to another folder
  const button = (key, sign, act, quarters) => {
    const isBarred = isFilm && quarters !== undefined;
    return make("button", {
      type: "button", title: text(isBarred ? "turnFilm" : `${key}Help`), "aria-label": text(key, { picture }), "data-quarters": quarters,
      disabled: isBarred, click: act,
    }, sign);
  };
  const inTurn = (act) => () => desk.inTurn(async () => desk.rows.has(picture) && act()); // it may have been taken out since the click
  const turn = async (quarters) => {
    await ask("pictures/turn", { ...where, pictures: [picture], quarters });
    await desk.load();
  };
  const turned = async (quarters) => {
    await ask("pictures/turn", { ...where, pictures: [picture], quarters });
    desk.past.push({ undo: () => turn(QUARTERS - quarters) });
    await desk.load();
    desk.rows.get(picture)?.item.querySelector(`[data-quarters="${quarters}"]`)?.focus(); // which is another button now
    desk.said.textContent = text("turned", { picture });
  };
  const out = async () => {
    const row = desk.rows.get(picture);
    const { entry } = await ask("pictures/remove", { ...where, pictures: [picture] });
    const unsaved = desk.edited().filter(([one]) => one === picture);
    desk.rows.delete(picture);
    row.item.remove(); // also where nothing is left to be loaded
    desk.past.push({
      undo: async () => {
        await ask("pictures/restore", { ...where, entry });
        await desk.load();
        desk.keep(unsaved);
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
    "div", { class: "atelier-tools" }, button("askAgain", "✎", () => desk.tried(asked)), button("turnLeft", "⟲", inTurn(() => turned(3)), 3),
    button("turnRight", "⟳", inTurn(() => turned(1)), 1), button("takeOut", "✕", inTurn(out)),
  );
}
