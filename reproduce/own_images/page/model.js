// What the run found, what a person has changed, and how it is kept. No function here draws.

const run = JSON.parse(document.getElementById("data").textContent);
const N = run.files.length, K = run.k;
const numberOf = new Map(run.files.map((file, i) => [file, i]));
const listeners = [], undone = [], done = [];
let state = { names: new Map(), merged: new Map(), moved: new Map(), gone: new Map() };
let members = new Map();  // cluster: its images
let unsaved = false;

// ---- where an image is

const group = k => state.merged.get(k) ?? k;
const clusterOf = i => group(state.moved.get(i) ?? run.cluster[i]);
const isCluster = k => members.has(k);
const printable = text => text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
  c => ({ "\n": "\\n", "\r": "\\r", "\t": "\\t" })[c] ?? "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const nameOf = k => state.names.get(k) ?? "";
const titleOf = k => printable(nameOf(k)) || `cluster ${k}`;

/** How sure the run is of an image, in thousandths, with all that is merged into its cluster. */
function certainty(i) {
  const own = group(run.cluster[i]);
  let sum = 0;
  for (let j = 6 * i; j < 6 * i + 6; j += 2) if (group(run.top[j]) === own) sum += run.top[j + 1];
  return Math.min(1000, sum);
}

/** The three likeliest clusters of an image as they are now: [[cluster, thousandths], …]. */
function likeliest(i) {
  const shares = new Map();
  for (let j = 6 * i; j < 6 * i + 6; j += 2) {
    const k = group(run.top[j]);
    if (run.top[j + 1] > 0) shares.set(k, (shares.get(k) ?? 0) + run.top[j + 1]);
  }
  return [...shares].sort((a, b) => b[1] - a[1]);
}

function recount() {
  members = new Map();
  for (let k = 0; k < K; k++) if (!state.merged.has(k)) members.set(k, []);
  const split = [...state.names.keys(), ...state.moved.values(), ...state.gone.values()];
  for (const k of split.map(group).sort((a, b) => a - b)) if (!members.has(k)) members.set(k, []);
  for (let i = 0; i < N; i++) members.get(clusterOf(i)).push(i);
  for (const [k, own] of members) {
    if (k >= K && !own.length && !nameOf(k) && ![...state.gone.values()].includes(k)) members.delete(k);
  }
}

// ---- changes; each can be undone

const copyOf = s => Object.fromEntries(Object.entries(s).map(([part, map]) => [part, new Map(map)]));

function change(what, act) {
  done.push([what, copyOf(state)]);
  if (done.length > 200) done.shift();
  undone.length = 0;
  act();
  for (const [i, k] of state.moved) if (group(k) === group(run.cluster[i])) state.moved.delete(i);
  changed(what);
}

function changed(what) {
  unsaved = true;
  recount();
  remember();
  for (const listener of listeners) listener(what);
}

function step(from, to, word) {
  if (!from.length) return;
  const [what, before] = from.pop();
  to.push([what, state]);
  state = before;
  changed(`${word}: ${what}`);
}
const undo = () => step(done, undone, "Undone");
const redo = () => step(undone, done, "Done again");

const rename = (k, name) => name === nameOf(k) || change(name ? `Renamed to ${printable(name)}` : "Name removed", () => state.names.set(k, name));

function move(images, k) {
  const moving = images.filter(i => clusterOf(i) !== k);
  if (!moving.length) return;
  change(`Moved ${count(moving.length, "image")} to ${titleOf(k)}`, () => moving.forEach(i => state.moved.set(i, k)));
}

function splitOff(images, name) {
  const k = Math.max(K - 1, ...members.keys()) + 1;
  change(`Split off ${count(images.length, "image")}`, () => {
    images.forEach(i => state.moved.set(i, k));
    state.names.set(k, name);
  });
  return k;
}

/** Put all of one cluster into another; returns the number of both, which is one of the run's. */
function merge(from, into) {
  const [gone, stays] = into >= K && from < K ? [into, from] : [from, into];
  const name = nameOf(into) || nameOf(from);
  change(`Merged ${titleOf(from)} into ${titleOf(into)}`, () => {
    for (const map of [state.moved, state.gone]) for (const [i, k] of map) if (k === gone) map.set(i, stays);
    for (const [k, whole] of state.merged) if (whole === gone) state.merged.set(k, stays);
    if (gone < K) state.merged.set(gone, stays);
    state.names.delete(gone);
    if (name) state.names.set(stays, name);
  });
  return stays;
}

const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

// ---- clusters.json, as reproduce/own_images/edits.py reads and writes it

function toFile() {
  const files = map => Object.fromEntries([...map].map(([i, k]) => [run.files[i], k]));
  const known = Object.entries(run.known_by).map(([k, images]) => [k, images.map(i => run.files[i])]);
  return { format: 1, run: run.run, saved: new Date().toISOString(), names: Object.fromEntries(state.names),
    merged: Object.fromEntries(state.merged), moved: { ...files(state.moved), ...Object.fromEntries(state.gone) },
    known_by: Object.fromEntries(known) };
}

/** A file in the numbers of this run; an Error with a sentence if it is none. */
function fromFile(content) {
  if (content?.format !== 1) throw Error("This is no clusters.json that this page has saved.");
  const numbers = part => Object.entries(content[part] ?? {}).map(([k, v]) => [Number(k), v]);
  const names = new Map(numbers("names")), merged = new Map(numbers("merged")), moved = Object.entries(content.moved ?? {});
  const whole = k => merged.get(k) ?? k, known = new Map(numbers("known_by"));
  const all = [...names.keys(), ...merged.keys(), ...merged.values(), ...moved.map(m => m[1]), ...known.keys()];
  const texts = [...names.values()].every(name => typeof name === "string");
  if (!texts || !all.every(k => Number.isInteger(k) && k >= 0 && k < 100_000)) throw Error("This clusters.json is damaged.");
  if ([...merged.values()].some(k => merged.has(k))) throw Error("This clusters.json is damaged.");
  const again = known.size ? foundAgain(known, whole) : new Map([...Array(K).keys()].map(k => [k, k]));
  const made = { names: new Map(), merged: new Map(), moved: new Map(), gone: new Map() }, number = new Map();
  const stay = new Set([...names.keys(), ...merged.values(), ...moved.map(m => m[1]), ...again.keys()].map(whole));
  for (const old of [...stay].sort((a, b) => a - b)) {
    const parts = [old, ...[...merged].filter(([, into]) => into === old).map(([k]) => k)];
    const there = parts.filter(k => again.has(k)).map(k => again.get(k));
    let split = old >= K ? old : K;
    while ([...number.values()].includes(split)) split++;
    number.set(old, there.length ? there[0] : split);
    for (const k of there.slice(1)) made.merged.set(k, number.get(old));
  }
  for (const [k, name] of names) if (number.has(k)) made.names.set(number.get(k), name);
  for (const [file, k] of moved) {
    const i = numberOf.get(file), to = number.get(whole(k));
    if (i === undefined) made.gone.set(file, to); else made.moved.set(i, to);
  }
  return made;
}

/** {a cluster that a file knows: the run's cluster that has most of its images, and few others}. */
function foundAgain(known, whole) {
  const there = new Map(), inside = new Map(), again = new Map();
  const add = (map, key, n = 1) => map.set(key, (map.get(key) ?? 0) + n);
  for (const [before, files] of [...known].sort((a, b) => a[0] - b[0])) {
    const now = files.filter(file => numberOf.has(file)).map(file => run.cluster[numberOf.get(file)]);
    there.set(before, now);
    for (const k of now) {
      if (!inside.has(k)) inside.set(k, new Map());
      add(inside.get(k), whole(before));
    }
  }
  for (const [before, now] of there) {
    const counts = new Map();
    now.forEach(k => add(counts, k));
    const [best, n] = [...counts].sort((a, b) => b[1] - a[1])[0] ?? [-1, 0];
    if (2 * n <= now.length || [...again.values()].includes(best)) continue;
    const total = [...inside.get(best).values()].reduce((a, b) => a + b, 0);
    if (2 * inside.get(best).get(whole(before)) > total) again.set(before, best);
  }
  return again;
}

// ---- this browser's memory, so that a reload loses nothing

const KEY = `clusters.json of ${run.key}`;

function remember() {
  try {
    localStorage.setItem(KEY, JSON.stringify({ unsaved, ...toFile() }));
  } catch {
    listeners.forEach(listener => listener("This browser cannot keep changes: save them as a file."));
  }
}

/** The state to begin with: the run's, or what was changed here since; returns what to tell of it. */
function recall() {
  state = fromFile(run.edits);
  recount();
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(KEY));
  } catch { /* nothing that can be read */ }
  if (!kept) return "";
  let here;
  try {
    here = fromFile(kept);
  } catch {
    return "";
  }
  const told = s => JSON.stringify(Object.values(s).map(map => [...map].sort()));
  if (told(here) === told(state)) return "";
  const newer = kept.saved > (run.edits.saved ?? "");
  const other = newer ? state : here;
  state = newer ? here : state;
  unsaved = newer && kept.unsaved;
  done.push(["what was there when this page was opened", other]);
  recount();
  return newer ? (kept.unsaved ? "Your changes are as you left them." : "")
    : "The run's clusters.json is newer than what was changed here. Undo shows what was changed here.";
}
