// Pictures in a grid: drawn as they come into sight, selected, moved through by keyboard.

const CHUNK = 120;
const selected = new Set();
let shown = [], anchor = -1;  // the images of the grid in their order, and where a range begins

/** An element with classes, properties and children; texts are text. */
function el(tag, classes = "", props = {}, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on") || name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The small picture of an image, out of its sheet. */
function picture(i, classes = "") {
  const { per_sheet: size, columns } = run.sheets, sheet = Math.floor(i / size), at = i % size;
  const rows = Math.ceil(Math.min(size, N - sheet * size) / columns);
  const made = el("span", `picture ${classes}`), percent = (a, n) => n > 1 ? 100 * a / (n - 1) : 0;
  made.style.backgroundImage = `url("thumbs/${String(sheet).padStart(4, "0")}.jpg")`;
  made.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  made.style.backgroundPosition = `${percent(at % columns, columns)}% ${percent(Math.floor(at / columns), rows)}%`;
  return made;
}

const swatch = k => {
  const made = el("i", "swatch");
  made.style.background = colour(k);
  return made;
};

const FIRST = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"];
const colour = k => FIRST[k] ?? `hsl(${(k * 137.5) % 360} 55% ${45 + 15 * (k % 2)}%)`;

const percent = thousandths => `${Math.round(thousandths / 10)} %`;
const baseName = file => printable(file.slice(file.lastIndexOf("/") + 1));

const ORDERS = {
  typical: ["most typical first", (a, b) => run.typicality[b] - run.typicality[a]],
  odd: ["least typical first", (a, b) => run.typicality[a] - run.typicality[b]],
  sure: ["surest first", (a, b) => certainty(b) - certainty(a)],
  doubtful: ["most doubtful first", (a, b) => certainty(a) - certainty(b)],
  name: ["by file name", (a, b) => run.files[a] < run.files[b] ? -1 : 1],
};

function tile(i) {
  const label = `${printable(run.files[i])}, ${titleOf(clusterOf(i))}`;
  const box = el("button", "check", { type: "button", tabIndex: -1, "aria-label": `Select ${baseName(run.files[i])}` });
  const text = el("span", "caption", {}, el("span", "file", {}, baseName(run.files[i])), el("span", "sure", {}, percent(certainty(i))));
  const open = el("button", "open", { type: "button", title: label, "aria-label": label, tabIndex: -1 }, picture(i), text);
  const made = el("li", "tile", {}, open, box);
  made.dataset.image = i;
  made.classList.toggle("selected", selected.has(i));
  open.onclick = event => selected.size || event.shiftKey || event.ctrlKey || event.metaKey ? toggle(i, event.shiftKey) : enlarge(i);
  box.onclick = event => toggle(i, event.shiftKey);
  return made;
}

/** Fill a list with images, some at a time as its end comes near. */
function fill(list, images) {
  shown = images;
  anchor = -1;
  let next = 0;
  const more = () => {
    list.append(...images.slice(next, next += CHUNK).map(tile));
    if (next >= images.length) watch.disconnect(), end.remove();
  };
  const end = el("div", "end"), watch = new IntersectionObserver(seen => seen[0].isIntersecting && again(), { rootMargin: "800px" });
  const again = () => {
    more();
    if (next < images.length) watch.unobserve(end), watch.observe(end);  // still near after this much
  };
  list.replaceChildren();
  list.after(end);
  more();
  watch.observe(end);
  list.querySelector(".open")?.setAttribute("tabindex", 0);
  list.draw = i => {  // as many as there are up to an image
    while (next < images.length && images.indexOf(i) >= next) more();
    return list.querySelector(`[data-image="${i}"]`);
  };
}

function toggle(i, range = false) {
  const at = shown.indexOf(i), on = !selected.has(i);
  const images = range && anchor >= 0 && at >= 0 ? shown.slice(Math.min(anchor, at), Math.max(anchor, at) + 1) : [i];
  for (const image of images) if (range || on) selected.add(image); else selected.delete(image);
  anchor = at;
  selectionChanged();
}

function select(images) {
  images.forEach(i => selected.add(i));
  selectionChanged();
}

function unselect() {
  selected.clear();
  selectionChanged();
}

function selectionChanged() {
  for (const t of document.querySelectorAll(".tile")) t.classList.toggle("selected", selected.has(Number(t.dataset.image)));
  document.body.classList.toggle("selecting", selected.size > 0);
  byId("selection").hidden = !selected.size;
  byId("selected").textContent = `${selected.size.toLocaleString("en")} selected`;
  drawMap();
}

/** Arrow keys within a grid; returns whether the key meant something. */
function walk(event) {
  const current = document.activeElement?.closest?.(".tile"), list = current?.parentElement;
  if (!list?.draw) return false;
  const at = shown.indexOf(Number(current.dataset.image));
  const across = getComputedStyle(list).gridTemplateColumns.split(" ").length;
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -at, End: shown.length - 1 - at }[event.key];
  if (by === undefined) return false;
  const to = Math.max(0, Math.min(shown.length - 1, at + by)), next = list.draw(shown[to]).querySelector(".open");
  current.querySelector(".open").tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  if (event.shiftKey) {
    if (anchor < 0) anchor = at;
    select(shown.slice(Math.min(anchor, to), Math.max(anchor, to) + 1));
  }
  return true;
}
