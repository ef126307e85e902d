// Samples as strips: one a prompt. Lines of the same words stand beside different control pictures, so the line's number counts too.

/** [{number, prompt, samples}] in the order in which they were first drawn; `prompt` is null where the pictures do not say it. */
export function strips(samples) {
  const found = new Map();
  for (const sample of samples) {
    const { number, prompt = null } = sample;
    const key = JSON.stringify([number, prompt]);
    if (!found.has(key)) found.set(key, { number, prompt, samples: [] });
    found.get(key).samples.push(sample);
  }
  return [...found.values()];
}

/** What tells a picture from every other, and from the one that was drawn in its place before. */
export const sampleKey = ({ filename, stamp }) => `${filename}?${stamp}`;
