// Drops and uploads, on a page that is only pretended. Prints what was seen as JSON.
const page = process.argv[2];
const { api } = await import(`${page}/scripts/api.js`);
globalThis.location = { href: "http://here:8188/", origin: "http://here:8188" };
const { below, bring, dropped, folderOf, heldAt, mayBring } = await import(`${page}/extensions/lora-atelier/lib/files.js`);

const seen = {};
seen.held = [
  "http://here:8188/api/view?filename=a%20b.png&subfolder=x%2Fy&type=output", "/view?filename=c.png", "http://else.where/view?filename=a.png",
  "http://here:8188/userdata/a.png", "http://here:8188/view", "", "javascript:alert(1)",
].map(heldAt);

const named = (...names) => names.map((name) => ({ name }));
seen.folders = [named("cats/a.png", "cats/b/c.png"), named("25_cats/a.png"), named("a.png", "cats/b.png"), named("a.png"), named("masks/a.png"), named("control_2/a.png")].map(folderOf);
seen.below = below(named("cats/a.png", "cats/b/c.png")).map(({ name }) => name);

// A folder as browsers hand it out: some entries at a time.
const file = (fullPath) => ({ isFile: true, fullPath, file: (done) => done(new File(["x"], fullPath.split("/").at(-1))) });
const folder = (fullPath, parts) => ({ fullPath, createReader: () => ({ readEntries: (done) => done(parts.shift() ?? []) }) });
const entries = [folder("/cats", [[file("/cats/1.png"), folder("/cats/in", [[file("/cats/in/2.png")]])], [file("/cats/3.txt")]]), file("/4.jpg")];
const dataTransfer = { types: ["Files"], items: entries.map((entry) => ({ kind: "file", webkitGetAsEntry: () => entry })), getData: () => "" };
seen.dropped = (await dropped({ dataTransfer })).map(({ name, file: one }) => [name, one.name]);
const locked = (path) => ({ isFile: true, fullPath: path, file: (_done, failed) => failed(new Error("locked")) });
const half = { fullPath: "/half", createReader: () => ({ left: [[file("/half/1.png"), locked("/half/2.png")]], readEntries(done, failed) { this.left.length ? done(this.left.shift()) : failed(new Error("gone")); } }) };
const broken = { types: ["Files"], items: [half].map((entry) => ({ kind: "file", webkitGetAsEntry: () => entry })), getData: () => "" };
seen.broken = (await dropped({ dataTransfer: broken })).map(({ name, file: one, why }) => [name, Boolean(one), Boolean(why)]);
const link = { types: ["text/uri-list"], items: [], getData: () => "http://here:8188/view?filename=p.png&type=temp\r\nhttp://else.where/x.png" };
seen.linked = await dropped({ dataTransfer: link });
seen.may = [{ dataTransfer }, { dataTransfer: link }, { dataTransfer: { types: ["text/plain"] } }, {}].map(mayBring);

// The server takes a while, refuses one for its size and loses another.
let [now, most, asked] = [0, 0, null];
const answers = (status, values = {}) => ({ ok: status < 400, status, statusText: "no", json: async () => values });
api.fetchApi = async (path, sent) => {
  if (path !== "/upload/image") {
    if (path.endsWith("/forget")) {
      seen.forgotten = JSON.parse(sent.body).place;
      return answers(200);
    }
    if (JSON.parse(sent.body).names) return answers(200, { left: [["cats/film.mp4", "films"]] });
    asked = JSON.parse(sent.body);
    return answers(200, { folder: asked.folder, new: asked.files.map(({ name }) => [name, name]), there: [], left: [["x", "why"]] });
  }
  now += 1;
  most = Math.max(most, now);
  await new Promise((done) => setTimeout(done, 5));
  now -= 1;
  if (sent.signal?.aborted) throw new Error("aborted");
  const image = sent.body.get("image");
  if (image.name === "3.png") return answers(413);
  if (image.name === "4.png") return answers(500);
  return answers(200, { name: image.name, subfolder: sent.body.get("subfolder"), type: sent.body.get("type") });
};
const files = Array.from({ length: 10 }, (_, i) => ({ name: `cats/${i} ü.png`, file: new File(["x"], `${i} ü.png`) }));
const steps = [];
const useless = [{ name: "cats/film.mp4", file: new File(["x"], "film.mp4") }, { name: "locked.png", why: "locked" }];
const held = { name: "drawn.png", held: { filename: "drawn.png", subfolder: "", type: "output" } };
seen.answer = await bring([...files, ...useless, held], "input/cats", ".txt", (done, count) => steps.push([done, count]));
seen.asked = asked;
seen.most = most;
seen.steps = steps;
// Films that are too large, with what lies beside them.
const small = api.fetchApi;
api.fetchApi = (path, sent) => (path !== "/upload/image" && JSON.parse(sent.body).names ? answers(200, { left: [], most: 3 }) : small(path, sent));
const beside = (names, large) => names.map((name) => ({ name, file: new File([large.includes(name) ? "xxxx" : "x"], name) }));
const companions = "cat.txt Cat.mp4.TXT cat.short.txt cat.note cat.mask.png cat_control_2.png";
const strangers = "cats.txt in/cat.txt cat.jpg.txt cat.final.jpg dog.txt dog.png walk.2.txt walk.2.png walk.txt clip.001.txt clip.png";
const large = ["cat.mp4", "dog.mp4", "walk.mp4", "clip.001.mp4"];
seen.beside = await bring(beside([...large, ...companions.split(" "), ...strangers.split(" ")], large), "input/cats", ".note", () => {});
api.fetchApi = small;
const stop = new AbortController();
asked = null;
seen.aborted = await bring(files, "input/cats", ".txt", () => stop.abort(), stop.signal).catch(() => "ended");
seen.askedAfter = asked;
console.log(JSON.stringify(seen));
