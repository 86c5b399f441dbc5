const table = document.getElementById("runs"), body = table.tBodies[0], rows = [...body.rows];
const find = document.getElementById("find"), selects = [...document.querySelectorAll("select")];
const text = (row, column) => row.cells[column].textContent.trim();

function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const content = [0, 1, 2].map(column => text(row, column)).join(" ").toLowerCase();
    row.hidden = !words.every(word => content.includes(word)) ||
      selects.some(select => select.value && text(row, select.dataset.column) !== select.value);
  }
  const shown = rows.filter(row => !row.hidden).length;
  document.getElementById("count").textContent =
    shown === rows.length ? `${shown} settings` : `${shown} of ${rows.length} settings`;
  keep();
}

// The address after # keeps what is typed, chosen and sorted: #find=…&data=…&sort=4,down
function keep() {
  const state = new URLSearchParams();
  if (find.value) state.set("find", find.value);
  for (const select of selects) if (select.value) state.set(select.name, select.value);
  const sorted = table.tHead.querySelector("[aria-sort]");
  if (sorted) state.set("sort", `${sorted.cellIndex},${sorted.ariaSort}`);
  history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
}

function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  find.value = state.get("find") ?? "";
  for (const select of selects) select.value = state.get(select.name) ?? "";
  const [column, order] = (state.get("sort") ?? "").split(",");
  const header = table.tHead.rows[0].cells[column];
  if (header?.querySelector("button")) sort(header, order === "descending");
  filter();
}

function sort(header, descending) {
  const column = header.cellIndex, numeric = header.classList.contains("num");
  const largestFirst = descending ?? (header.ariaSort ? header.ariaSort === "ascending" : numeric);
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", largestFirst ? "descending" : "ascending");
  const value = row => numeric ? parseFloat(text(row, column)) : text(row, column);
  const compare = (a, b) => numeric ? a - b : a.localeCompare(b, "en", {numeric: true});
  const keyed = [...body.rows].map(row => [value(row), row]); // ties keep the order shown
  keyed.sort(([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || // empty cells stay at the end
    (Number.isNaN(a) ? 0 : compare(a, b) * (largestFirst ? -1 : 1)));
  body.append(...keyed.map(([, row]) => row));
  keep();
}

for (const button of table.tHead.querySelectorAll("button"))
  button.addEventListener("click", () => sort(button.parentNode));
for (const control of [find, ...selects]) control.addEventListener("input", filter);
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
window.addEventListener("hashchange", restore);
restore();
