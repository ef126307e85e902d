// The words of the panels, from locales/<language>/main.json as the host serves them; English where a word is missing.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const all = await api
  .fetchApi("/i18n")
  .then((answer) => answer.json())
  .catch(() => ({}));

/** The language of the page. */
export const language = () => app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";

/** The text of a key, with [name] replaced by values.name; where values.count is 1, that of the key with One behind it, if any. */
export function text(key, values = {}) {
  const keys = values.count === 1 ? [`${key}One`, key] : [key];
  const words = (from) => keys.map((one) => all[from]?.loraAtelier?.[one]).find((one) => one !== undefined);
  const found = words(language()) ?? words(language().split("-")[0]) ?? words("en") ?? key;
  return found.replace(/\[(\w+)\]/g, (whole, name) => values[name] ?? whole);
}
