// The pack's workflows among the host's templates: in the order of their names, where the host lists them as the disk does.
import { api } from "../../scripts/api.js";

const OWN = decodeURIComponent(new URL(import.meta.url).pathname.match(/\/extensions\/([^/]+)\//)?.[1] ?? "");
const all = api.getWorkflowTemplates;

if (all) {
  api.getWorkflowTemplates = async function (...args) {
    const found = await all.apply(this, args);
    found?.[OWN]?.sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
    return found;
  };
}
