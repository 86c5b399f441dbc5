// A slider for λ1 on the closed form, from the terms in the page's own table: of each prediction the
// loss PC − λ1 H, for either entropy; the lowest is marked. The table has
// three decimals, so that two of a loss are sure.
const table = [...document.querySelectorAll("table")].find(table =>
  table.tHead && /H\(each sample\)/.test(table.tHead.textContent));
if (table) {
  const rows = [...table.tBodies[0].rows].map(row => {
    const [pc, sample, batch] = [...row.querySelectorAll("td")].map(cell => +cell.textContent);
    return {name: row.querySelector("th").textContent, pc, H: {sample, batch}};
  });
  const kinds = {batch: "entropy of the batch mean", sample: "entropy of each sample"};
  const make = (tag, parent, text = "", kind = "") => {
    const made = parent.appendChild(document.createElement(tag));
    made.textContent = text;
    made.className = kind;
    return made;
  };
  const box = make("figure", document.createElement("div"), "", "closed-form");
  const label = make("label", box, "λ1 ");
  const slider = make("input", label);
  Object.assign(slider, {type: "range", id: "lambda1", min: 0, max: 3, step: 0.01, value: 1});
  const shown = make("output", label);
  const panels = Object.entries(kinds).map(([kind, name]) => {
    const panel = make("section", box);
    make("h4", panel, name);
    const bars = rows.map(row => {
      const line = make("div", panel, "", "line");
      make("span", line, row.name);
      const bar = make("span", make("span", line, "", "track"), "", "bar");
      return {row, line, bar, number: make("span", line, "", "number")};
    });
    return {kind, bars, preferred: make("p", panel)};
  });
  make("figcaption", box, "The loss PC − λ1 H in nats. The prediction with the shortest bar is the " +
    "one that the loss prefers.");
  table.closest(".wide").after(box.parentNode);

  const draw = () => {
    const weight = +slider.value;
    shown.textContent = weight.toFixed(2);
    for (const {kind, bars, preferred} of panels) {
      const losses = bars.map(({row}) => row.pc - weight * row.H[kind]);
      const least = Math.min(...losses);
      bars.forEach(({row, line, bar, number}, i) => {
        bar.style.width = `${Math.max(0, Math.min(100, 100 * losses[i] / 7))}%`;
        number.textContent = losses[i].toFixed(2).replace("-", "−");
        line.classList.toggle("least", losses[i] === least);
      });
      const best = bars.filter((_, i) => losses[i] === least).map(({row}) => row.name);
      preferred.textContent = `Preferred: ${best.join(" or ")}.`;
    }
  };
  slider.addEventListener("input", draw);
  draw();
}
