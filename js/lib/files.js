// Files that a person drops or chooses, and their way to the server: through ComfyUI's own upload, a few at a time.
import { api } from "../../../scripts/api.js";
import { ask } from "./server.js";
import { text } from "./text.js";

const AT_ONCE = 3;
const STAGED = "lora-atelier-incoming"; // where the server looks for them

/** The pictures of ComfyUI's own that an address leads to, as the server finds them; null for any other address. */
export function heldAt(address) {
  const url = URL.canParse(address, location.href) ? new URL(address, location.href) : null;
  if (url?.origin !== location.origin || !/\/view$/.test(url.pathname)) return null;
  const { filename, subfolder = "", type = "output" } = Object.fromEntries(url.searchParams);
  return filename ? { name: filename, held: { filename, subfolder, type } } : null;
}

/** Whether something is dragged that may be pictures. */
export const mayBring = (event) => ["Files", "text/uri-list"].some((type) => event.dataTransfer?.types?.includes(type));

/**
 * What was dropped, [{name, file} or {name, held}], with the folders that files were in, and {name, why} of what cannot be read. To be
 * called while the event lasts.
 */
export async function dropped(event) {
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean);
  const addresses = entries.length ? [] : event.dataTransfer.getData("text/uri-list").split("\n");
  const files = await Promise.all(entries.map((entry) => (entry instanceof File ? [{ name: entry.name, file: entry }] : inside(entry))));
  return [...files.flat(), ...addresses.map((address) => heldAt(address.trim())).filter(Boolean)];
}

async function inside(entry) {
  const got = (work) => new Promise((resolve, reject) => work(resolve, reject));
  const [name, found] = [entry.fullPath.slice(1), []];
  try {
    if (entry.isFile) return [{ name, file: await got((done, failed) => entry.file(done, failed)) }];
    const reader = entry.createReader();
    for (let some; (some = await got((done, failed) => reader.readEntries(done, failed))).length; ) found.push(...some); // a hundred at a time
    return (await Promise.all(found.map(inside))).flat();
  } catch (error) {
    const why = { name, why: text(entry.isFile ? "notReadFile" : "notReadFolder", { why: error.message }) };
    return [why, ...(await Promise.all(found.map(inside))).flat()];
  }
}

/** What was chosen in an <input type="file">. */
export const chosen = (input) => [...input.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }));

const OWN_MEANING = /^(\d+_.*|masks?|_?(control|conditioning)s?(_images|_data)?([-_ ]?\d{1,2})?)$/i; // see training/dataset/names.py

/** The one folder that all files are in, unless its name says more: repeats, masks, control pictures; "" if there is none. */
export function folderOf(files) {
  const tops = new Set(files.map(({ name }) => (name.includes("/") ? name.split("/")[0] : "")));
  const [top] = tops;
  return tops.size === 1 && !OWN_MEANING.test(top) ? top : "";
}

/** Names without the one folder that all files are in. */
export function below(files) {
  const top = folderOf(files);
  return top ? files.map((one) => ({ ...one, name: one.name.slice(top.length + 1) })) : files;
}

const TEXT = /\.(txt|text|captions?|cap|tags?|prompt|wd14|wd14_cap|llmcap|booru|json)$/; // CAPTION_ENDINGS of training/config/subset.py
const WORD = /\.(?!(png|jpe?g|webp|bmp|gif|tiff?|avif|hei[cf]|mp4|m4v|mov|mkv|webm|avi)$)[^.]*$/; // of cat.short.txt, not of cat.jpg.txt
const MARK = /(\.mask|-masklabel|[-_]mask|(\.control|-condlabel|[-_](control|cond|conditioning))([-_.]?\d{1,2})?)$/; // training/dataset/names.py

/** Captions, masks and control pictures beside what is left out, which would go to another picture of the name that lies there. */
function companionsOf(gone, files, extension) {
  const plain = (name) => name.normalize("NFC").toLowerCase();
  const parted = ({ name, batch = 0 }) => {
    const [, around, base] = /^(.*\/)?(.*)$/s.exec(plain(name));
    const [, stem, ending = ""] = /^(.+?)(\.[^.]*)?$/s.exec(base) ?? ["", base];
    return { place: `${batch}/${around ?? ""}`, base, stem, isText: TEXT.test(base) || (ending && ending === plain(extension ?? "")) };
  };
  const owners = new Set(gone.map(parted).flatMap(({ place, base, stem }) => [place + base, place + stem]));
  const others = new Set(files.map(parted).filter(({ isText }) => !isText).map(({ place, stem }) => place + stem));
  return files.filter((one) => {
    const { place, stem, isText } = parted(one);
    const bare = stem.replace(isText ? WORD : MARK, "");
    const names = (isText ? [stem, bare] : bare === stem ? [] : [bare]).map((name) => place + name);
    const whose = names.find((name) => owners.has(name) || others.has(name)); // the longest decides, as on the server
    return owners.has(whose) && !others.has(whose);
  });
}

/**
 * Brings files into a folder of the server; gives its answer, {folder, new, there, left, films}. What cannot be sent is among what is left.
 * `said(done, count)` hears how many were sent; `signal` ends it, and then nothing is brought.
 */
export async function bring(all, folder, extension, said, signal) {
  // Names that cannot be, what is of no use, and what is too large are said before anything is sent.
  const { left: useless = [], most } = await ask("pictures/add", { folder, extension, files: [], names: all.map(({ name }) => name) });
  const passed = new Set(useless.map(([name]) => name));
  const reason = ({ why, file }) => why ?? (most && file?.size > most ? text("tooLarge") : undefined);
  const wanted = all.filter((one) => !reason(one) && !passed.has(one.name));
  const refused = all.filter((one) => reason(one) && !passed.has(one.name));
  const alone = new Set(companionsOf(refused.filter(({ file }) => most && file?.size > most), wanted, extension));
  const files = wanted.filter((one) => !alone.has(one));
  const left = [...useless, ...refused.map((one) => [one.name, reason(one)]), ...[...alone].map(({ name }) => [name, text("ofTooLarge")])];
  const key = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const sent = [];
  const waiting = files.map((one, number) => ({ ...one, number }));
  let done = 0;
  const worker = async () => {
    for (let one; (one = waiting.shift()); said(++done, files.length)) {
      try {
        sent.push({ name: one.name, batch: one.batch ?? 0, ...(one.held ?? (await upload(one, `${STAGED}/${key}`, signal))) });
      } catch (error) {
        if (signal?.aborted) throw error;
        left.push([one.name, error.message]);
      }
    }
  };
  try {
    const ended = await Promise.allSettled(Array.from({ length: AT_ONCE }, worker));
    signal?.throwIfAborted();
    for (const { reason } of ended) if (reason) throw reason;
    const answer = await ask("pictures/add", { folder, extension, files: sent });
    return { ...answer, left: [...left, ...answer.left] };
  } catch (error) {
    await ask("pictures/forget", { place: key }).catch(() => {}); // nothing is left lying about
    throw error;
  }
}

async function upload({ file, number }, place, signal) {
  const form = new FormData();
  const ending = /\.\w{1,10}$/.exec(file.name)?.[0] ?? "";
  form.append("image", file, `${number}${ending}`); // its own name goes with the question, where it is made safe
  form.append("type", "temp");
  form.append("subfolder", place);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form, signal });
  if (answer.status === 413) throw new Error(text("tooLarge"));
  if (!answer.ok) throw new Error(text("notSent", { why: `${answer.status} ${answer.statusText}` }));
  const { name, subfolder, type } = await answer.json();
  return { filename: name, subfolder, type };
}
