// Questions to this pack's part of the server.
import { api } from "../../../scripts/api.js";

/** The JSON answer; an Error with the server's sentence (and `status`) if it refuses. With a body it is a POST. */
export async function ask(path, body) {
  const sent = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await api.fetchApi(`/lora_atelier/${path}`, sent);
  const values = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(values.error ?? `${answer.status} ${answer.statusText}`), { status: answer.status });
  return values;
}

/** Address of a picture of the server, small if asked for; another one when its `stamp` is another. */
export function pictureOf({ filename, subfolder, type, stamp }, small = false) {
  const query = new URLSearchParams({ filename, subfolder, type, ...(small ? { preview: "webp;80" } : {}), ...(stamp ? { stamp } : {}) });
  return api.apiURL(`/view?${query}`);
}

/** Calls back with the status of a run whenever it changes. Returns what ends that. */
export function onRun(callback) {
  const heard = (event) => callback(event.detail);
  api.addEventListener("lora_atelier.run", heard);
  return () => api.removeEventListener("lora_atelier.run", heard);
}

export const onReconnect = (callback) => api.addEventListener("reconnected", callback);
