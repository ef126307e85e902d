// Moments of a training, in words.
import { text } from "./text.js";

/** What the server calls the moment of a file or a sample (start, epoch 3, step 250), in the language of the page; other names stay. */
export function momentOf(label) {
  const [, kind, number] = /^(epoch|step) (\d+)$/.exec(label) ?? [];
  if (kind) return kind === "epoch" ? text("sampleEpoch", { epoch: number }) : text("sampleStep", { step: number });
  return label === "start" ? text("sampleStart") : label;
}
