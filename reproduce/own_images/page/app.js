// What stands where: the list of clusters, a cluster, the map, a search, one image; and the dialogs.

const byId = id => document.getElementById(id);
let enlarged = -1, order = "typical";

const route = () => {
  const [where, ...rest] = location.hash.slice(1).split("/");
  return { where: where || "all", word: decodeURIComponent(rest.join("/")) };
};
const go = to => { location.hash = to; };

// ---- the list at the side

function drawSide() {
  const { where, word } = route(), here = where === "cluster" || where === "map" ? Number(word || -1) : -1;
  const item = (to, current, ...children) => el("li", "", {}, el("a", "", { href: to, ...(current ? { "aria-current": "page" } : {}) }, ...children));
  const base = where === "map" ? "#map" : "#cluster";
  const all = item(where === "map" ? "#map" : "#all", where === "all" || (where === "map" && here < 0),
    el("span", "title", {}, "All clusters"), el("span", "count", {}, N.toLocaleString("en")));
  const each = [...members].map(([k, images]) => item(`${base}/${k}`, k === here,
    swatch(k), el("span", "title", {}, titleOf(k)), el("span", "count", {}, images.length.toLocaleString("en"))));
  byId("clusters").replaceChildren(all, ...each);
  byId("clusters").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  byId("tab-images").toggleAttribute("aria-current", where !== "map");
  byId("tab-map").toggleAttribute("aria-current", where === "map");
  byId("tab-images").href = where === "map" && here >= 0 ? `#cluster/${here}` : "#all";
  byId("tab-map").href = where === "cluster" ? `#map/${here}` : "#map";
  byId("undo").disabled = !done.length;
  byId("redo").disabled = !undone.length;
  byId("undo").title = done.length ? `Undo: ${done.at(-1)[0]} (Ctrl+Z)` : "Nothing to undo";
  byId("save").classList.toggle("unsaved", unsaved);
}

// ---- the main part

function draw() {
  const { where, word } = route(), k = Number(word);
  document.body.dataset.where = where;
  byId("mapped").hidden = where !== "map";
  byId("grid").hidden = where === "map";
  document.querySelectorAll(".end").forEach(end => end.remove());
  if (where === "cluster" && isCluster(k)) drawCluster(k);
  else if (where === "map") drawMapPart(word === "" || !isCluster(k) ? null : k);
  else if (where === "search" && word.trim()) drawSearch(word);
  else drawAll();
  drawSide();
}

function drawAll() {
  byId("head").replaceChildren(el("h1", "", {}, "All clusters"), el("p", "quiet", {},
    `${count(N, "image")} in ${count(members.size, "cluster")}. Open one to name it, and to put single images right.`),
    ...(run.verdict ? [el("p", "verdict", {}, run.verdict)] : []),
    ...run.notes.map(note => el("p", "quiet note", {}, note)));
  const card = ([k, images]) => {
    const best = [...images].sort(ORDERS.typical[1]).slice(0, 8);
    const mosaic = el("span", "mosaic", {}, ...best.map(i => picture(i)));
    return el("li", "card", {}, el("a", "", { href: `#cluster/${k}` }, mosaic, el("span", "line", {}, swatch(k),
      el("span", "title", {}, titleOf(k)), el("span", "count", {}, images.length.toLocaleString("en")))));
  };
  byId("grid").className = "cards";
  byId("grid").replaceChildren(...[...members].map(card));
  shown = [];
}

function drawGrid(images) {
  byId("grid").className = "tiles";
  fill(byId("grid"), [...images].sort(ORDERS[order][1]));
}

function orderChoice(images) {
  const choice = el("select", "", { "aria-label": "Order", onchange: () => { order = choice.value; drawGrid(images); } },
    ...Object.entries(ORDERS).map(([key, [text]]) => el("option", "", { value: key, selected: key === order }, text)));
  return choice;
}

function drawCluster(k) {
  const images = members.get(k);
  const name = el("input", "name", { value: nameOf(k), placeholder: `cluster ${k}`, "aria-label": "Name of the cluster", spellcheck: false, maxLength: 200 });
  name.onchange = () => rename(k, name.value.trim());
  name.onkeydown = event => event.key === "Enter" && name.blur();
  const marks = el("p", "tools", {}, el("span", "quiet", {}, count(images.length, "image")), orderChoice(images),
    el("button", "", { type: "button", onclick: () => select(images), disabled: !images.length }, "Select all"),
    el("button", "", { type: "button", id: "merge", onclick: () => askMerge(k), disabled: members.size < 2 }, "Merge into…"));
  byId("head").replaceChildren(el("h1", "", {}, swatch(k), name), marks);
  drawGrid(images);
  if (!images.length) byId("grid").replaceChildren(el("li", "quiet", {}, "No image is here. Move some to it, or leave it empty."));
}

function drawSearch(word) {
  const words = word.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = i => `${run.files[i]} ${titleOf(clusterOf(i))}`.toLowerCase();
  const found = [...Array(N).keys()].filter(i => words.every(w => texts(i).includes(w)));
  byId("head").replaceChildren(el("h1", "", {}, `“${printable(word)}”`), el("p", "tools", {},
    el("span", "quiet", {}, `${count(found.length, "image")} whose file or cluster has this in its name`), orderChoice(found),
    el("button", "", { type: "button", onclick: () => select(found), disabled: !found.length }, "Select all")));
  drawGrid(found);
}

function drawMapPart(k) {
  view.only = k;
  byId("head").replaceChildren(el("h1", "", {}, ...(k === null ? [] : [swatch(k)]), k === null ? "Map" : titleOf(k)), el("p", "quiet", {},
    "Images with similar features lie near each other; distances between groups mean nothing. ", el("span", "by-mouse", {},
      "Point at one to see it, scroll to come closer, drag with Shift to select."), el("span", "by-touch", {}, "Tap one to see it, + to come closer, drag to move.")));
  drawMap();
}

// ---- one image, large

const escaped = file => [...file].map(c => {
  const code = c.charCodeAt(0);  // a byte that was no text stands as a lone surrogate
  return c.length === 1 && code >= 0xdc80 && code <= 0xdcff ? `%${(code - 0xdc00).toString(16)}` : c === "/" ? c : encodeURIComponent(c);
}).join("");

function enlarge(i) {
  enlarged = i;
  const k = clusterOf(i), dialog = byId("viewer"), at = shown.indexOf(i);
  const small = picture(i, "large"), large = el("img", "", { alt: printable(run.files[i]) });
  large.onload = () => byId("frame").replaceChildren(large);
  large.src = run.base + escaped(run.files[i]);
  byId("frame").replaceChildren(small);
  byId("file").textContent = printable(run.files[i]);
  byId("position").textContent = at < 0 ? "" : `${at + 1} of ${shown.length}`;
  byId("is-in").replaceChildren(swatch(k), titleOf(k));
  byId("is-in").href = `#cluster/${k}`;
  byId("by-hand").hidden = !state.moved.has(i);
  byId("bars").replaceChildren(...likeliest(i).filter(([, p], j) => p >= 5 || !j).map(([cluster, p]) => {
    const bar = el("span", "bar"), fillOf = el("i");
    fillOf.style.width = `${p / 10}%`;
    fillOf.style.background = colour(cluster);
    bar.append(fillOf);
    return el("li", "", {}, el("span", "title", {}, titleOf(cluster)), bar, el("span", "count", {}, percent(p)));
  }));
  const near = run.near.slice(i * run.n_near, (i + 1) * run.n_near).filter(j => j >= 0);
  byId("alike").replaceChildren(...near.map(j => {
    const label = `${printable(run.files[j])}, ${titleOf(clusterOf(j))}`;
    return el("li", "", {}, el("button", "", { type: "button", title: label, "aria-label": label, onclick: () => enlarge(j) }, picture(j), swatch(clusterOf(j))));
  }));
  byId("alike-part").hidden = !near.length;
  byId("pick").textContent = selected.has(i) ? "Unselect (X)" : "Select (X)";
  if (!dialog.open) dialog.showModal();
}

function next(by) {
  const at = shown.indexOf(enlarged);
  if (at >= 0 && shown[at + by] !== undefined) enlarge(shown[at + by]);
}

byId("viewer").onclose = () => {
  const last = shown.includes(enlarged) ? byId("grid").draw?.(enlarged)?.querySelector(".open") : null;
  enlarged = -1;
  last?.focus();
};

// ---- dialogs

/** Ask for a cluster; act(number) for one that is there, make(name) for a new one. */
function ask(title, without, act, make) {
  const dialog = byId("choose"), search = byId("choose-search");
  byId("choose-title").textContent = title;
  search.value = "";
  search.placeholder = make ? "Find a cluster, or name a new one" : "Find a cluster";
  const closeWith = then => { dialog.close(); then(); };
  const list = () => {
    const word = search.value.trim(), found = [...members].filter(([k]) => k !== without && titleOf(k).toLowerCase().includes(word.toLowerCase()));
    const each = found.map(([k, images]) => el("li", "", {}, el("button", "", { type: "button", onclick: () => closeWith(() => act(k)) },
      swatch(k), el("span", "title", {}, titleOf(k)), ...images.slice(0, 3).map(i => picture(i)), el("span", "count", {}, images.length.toLocaleString("en")))));
    const fresh = make ? [el("li", "", {}, el("button", "new", { type: "button", onclick: () => closeWith(() => make(word)) },
      el("span", "title", {}, word ? `New cluster “${printable(word)}”` : "New cluster without a name")))] : [];
    byId("choose-list").replaceChildren(...each, ...fresh);
  };
  search.oninput = list;
  search.onkeydown = event => {
    if (event.key === "Enter") event.preventDefault(), byId("choose-list").querySelector("button")?.click();
  };
  list();
  dialog.showModal();
  search.focus();
}

const chosen = () => enlarged >= 0 && !selected.size ? [enlarged] : [...selected];

function after(then) {
  then();
  unselect();
  if (byId("viewer").open) enlarge(enlarged);
}

function askMove() {
  const images = chosen();
  if (images.length) ask(`Move ${count(images.length, "image")} to`, null, k => after(() => move(images, k)), name => after(() => splitOff(images, name)));
}

function askSplit() {
  const images = chosen();
  if (!images.length) return;
  byId("split-title").textContent = `Split off ${count(images.length, "image")}`;
  byId("split-name").value = "";
  byId("splitting").showModal();
  byId("split-form").onsubmit = () => after(() => splitOff(images, byId("split-name").value.trim()));
}

function askMerge(k) {
  ask(`Merge ${titleOf(k)} into`, k, into => go(`cluster/${merge(k, into)}`));
}

let hiding = 0;
function tell(text, action = null) {
  const note = byId("note");
  clearTimeout(hiding);
  note.replaceChildren(el("span", "", {}, text), ...(action ? [el("button", "", { type: "button", onclick: action[1] }, action[0])] : []));
  note.hidden = !text;
  hiding = setTimeout(() => { note.hidden = true; }, 6000);
}

function save() {
  const text = JSON.stringify(toFile(), null, 1), link = el("a", "", { download: "clusters.json" });
  link.href = URL.createObjectURL(new Blob([`${text}\n`], { type: "application/json" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  unsaved = false;
  remember();
  drawSide();
  byId("saved").showModal();
}

async function open(file) {
  byId("import").value = "";
  try {
    let content;
    try {
      content = JSON.parse(await file.text());
    } catch {
      throw Error("This file is no JSON.");
    }
    const read = fromFile(content);
    change(`Opened ${printable(file.name)}`, () => { state = read; });
    if (read.gone.size) tell(`${count(read.gone.size, "image")} that this file moves ${read.gone.size === 1 ? "is" : "are"} not in this run.`);
  } catch (error) {
    tell(error.message);
  }
}

// ---- what is clicked and typed

const acts = { undo, redo, save, move: askMove, split: askSplit, clear: unselect, previous: () => next(-1), following: () => next(1),
  "move-one": askMove, help: () => byId("helped").showModal(), pick: () => { toggle(enlarged); enlarge(enlarged); } };
for (const [id, act] of Object.entries(acts)) byId(id).onclick = act;
byId("import").onchange = () => byId("import").files[0] && open(byId("import").files[0]);
byId("search").oninput = () => go(byId("search").value.trim() ? `search/${encodeURIComponent(byId("search").value)}` : "all");
byId("is-in").onclick = () => byId("viewer").close();
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", event => event.target === dialog && dialog.close());
  for (const button of dialog.querySelectorAll("[data-close]")) button.onclick = () => dialog.close();
}

document.onkeydown = event => {
  const typing = event.target.closest?.("input, select, textarea"), key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && !typing) {
    const act = { z: event.shiftKey ? redo : undo, y: redo, s: save, a: () => shown.length && select(shown) }[key];
    if (act) event.preventDefault(), act();
    return;
  }
  if (typing || event.altKey || event.metaKey || event.ctrlKey) return;
  const dialog = document.querySelector("dialog[open]:not(#viewer)");
  if (dialog) return;
  const one = byId("viewer").open, tileHere = document.activeElement?.closest?.(".tile");
  const act = one ? { arrowleft: () => next(-1), arrowright: () => next(1), x: acts.pick, m: askMove, s: askSplit }[key]
    : { x: () => tileHere && toggle(Number(tileHere.dataset.image)), m: askMove, s: askSplit, "/": () => byId("search").focus(), "?": acts.help,
      r: () => document.querySelector("input.name")?.select(), escape: unselect, " ": () => tileHere && toggle(Number(tileHere.dataset.image)) }[key];
  if (act && !(key === " " && !tileHere)) event.preventDefault(), act();
  else if (!one && walk(event)) event.preventDefault();
};

listeners.push(what => {
  const kept = byId("grid").querySelectorAll(".tile").length, top = scrollY;
  draw();
  if (kept && shown.length) byId("grid").draw?.(shown[Math.min(kept, shown.length) - 1]);
  scrollTo(0, top);
  if (byId("viewer").open && enlarged >= 0) enlarge(enlarged);
  const twins = [...members.keys()].filter(k => nameOf(k)).filter((k, _, all) => all.some(other => other !== k && nameOf(other) === nameOf(k)));
  if (what.startsWith("Renamed") && twins.length > 1) tell("Two clusters have this name now.", ["Merge them", () => go(`cluster/${merge(twins[1], twins[0])}`)]);
  else tell(what, what.startsWith("Undone") ? null : ["Undo", undo]);
});
window.onhashchange = () => {
  if (route().where !== "search") byId("search").value = "";
  draw();
  scrollTo(0, 0);
};
window.onstorage = event => {  // another tab on the same run
  if (event.key !== KEY || !event.newValue) return;
  state = fromFile(JSON.parse(event.newValue));
  recount();
  draw();
};

const told = recall();
startMap();
draw();
if (told) tell(told);
