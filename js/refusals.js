// A refusal stands at the widget that it names: the host writes it down at the first one that it looked at.
import { api } from "../../scripts/api.js";

const REFUSED = "custom_validation_failed"; // what the host calls a refusal of a node's own
const isOurs = (type) => (window.LiteGraph?.registered_node_types?.[type]?.nodeData?.category ?? "").startsWith("LoRA Atelier");

/** `errors`: the host's, by node, changed in place. `output`: the nodes that were queued. */
function pin(errors, output) {
  for (const [id, { class_type: type, errors: found }] of Object.entries(errors ?? {})) {
    for (const error of isOurs(type) ? found : []) {
      const [, sentence, widget] = /^\w+ - ((\w+): .*)$/s.exec(error.details) ?? [];
      if (error.type !== REFUSED || !(widget in (output?.[id]?.inputs ?? {}))) continue;
      error.details = sentence;
      error.extra_info = { ...error.extra_info, input_name: widget };
    }
  }
}

const queue = api.queuePrompt;
api.queuePrompt = async function (number, prompt, ...others) {
  let answer;
  try {
    answer = await queue.call(this, number, prompt, ...others);
  } catch (error) {
    pin(error?.response?.node_errors, prompt?.output);
    throw error;
  }
  pin(answer?.node_errors, prompt?.output); // what can run is queued all the same
  return answer;
};
