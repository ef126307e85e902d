// The words of the panels, from locales/<language>/main.json as the host serves them; English where a word is missing.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const all = await api
  .fetchApi("/i18n")
  .then((answer) => answer.json())
  .catch(() => ({}));

/** The text of a key, with [name] replaced by values.name. */
export function text(key, values = {}) {
  const language = app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
  const found = all[language]?.loraAtelier?.[key] ?? all.en?.loraAtelier?.[key] ?? key;
  return found.replace(/\[(\w+)\]/g, (whole, name) => values[name] ?? whole);
}
