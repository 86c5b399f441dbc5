// All images as points; near ones have similar features.

const view = { zoom: 1, x: 0.5, y: 0.5, near: -1, from: null, box: null, only: null, points: null };
const onMap = [...Array(N).keys()].filter(i => run.x[i] >= 0);

function place(i) {
  const { width, height } = view, side = Math.min(width, height) * 0.9 * view.zoom;
  return [width / 2 + (run.x[i] / 10_000 - view.x) * side, height / 2 - (run.y[i] / 10_000 - view.y) * side];
}

/** The map; anew: all of it, and not only what is under the pointer. */
function drawMap(anew = true) {
  const canvas = byId("map"), ratio = window.devicePixelRatio || 1;
  if (!canvas || !canvas.offsetWidth) return;
  if (anew || !view.points) drawPoints(canvas, ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(view.points, 0, 0);
  pen.scale(ratio, ratio);
  if (view.near >= 0) dot(pen, view.near, dotSize() + 4, "#1f2933"), dot(pen, view.near, dotSize() + 1, colour(clusterOf(view.near)));
  if (view.only === null) namesOnMap(pen);
  if (view.box) {
    pen.strokeStyle = "#1f2933";
    pen.setLineDash([4, 3]);
    pen.strokeRect(...view.box);
    pen.setLineDash([]);
  }
}

const dotSize = () => Math.max(1.6, Math.min(6, 90 / Math.sqrt(onMap.length + 1))) * Math.sqrt(view.zoom);

function dot(pen, i, r, fill) {
  const [x, y] = place(i);
  if (x < -r || y < -r || x > view.width + r || y > view.height + r) return;
  pen.fillStyle = fill;
  pen.beginPath();
  pen.arc(x, y, r, 0, 7);
  pen.fill();
}

function drawPoints(canvas, ratio) {
  [view.width, view.height] = [canvas.offsetWidth, canvas.offsetHeight];
  [canvas.width, canvas.height] = [ratio * view.width, ratio * view.height];
  view.points = el("canvas", "", { width: canvas.width, height: canvas.height });
  const pen = view.points.getContext("2d"), size = dotSize();
  pen.scale(ratio, ratio);
  for (const i of onMap) {
    const k = clusterOf(i);
    pen.globalAlpha = view.only !== null && k !== view.only ? 0.12 : 0.75;
    dot(pen, i, size, colour(k));
  }
  pen.globalAlpha = 1;
  for (const i of selected) if (run.x[i] >= 0) dot(pen, i, size + 2.5, "#1f2933"), dot(pen, i, size, colour(clusterOf(i)));
}

function namesOnMap(pen) {
  const middle = values => values.sort((a, b) => a - b)[values.length >> 1];
  pen.font = "600 13px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  for (const [k, images] of members) {
    const there = images.filter(i => run.x[i] >= 0);
    if (!there.length) continue;
    const y = middle(there.map(i => place(i)[1])), title = titleOf(k);
    const text = title.length > 24 ? `${[...title].slice(0, 23).join("")}…` : title, half = pen.measureText(text).width / 2 + 6;
    let x = middle(there.map(i => place(i)[0]));
    if (view.zoom === 1) x = Math.max(half, Math.min(view.width - half, x));
    pen.lineWidth = 4;
    pen.strokeStyle = "#ffffffd9";
    pen.strokeText(text, x, y);
    pen.fillStyle = "#1f2933";
    pen.fillText(text, x, y);
  }
}

function nearest(x, y, within = 14) {
  let best = -1, least = within * within;
  for (const i of onMap) {
    const [a, b] = place(i), away = (a - x) ** 2 + (b - y) ** 2;
    if (away < least && (view.only === null || clusterOf(i) === view.only)) [best, least] = [i, away];
  }
  return best;
}

function hover(i, x, y) {
  const card = byId("hover");
  card.hidden = i < 0;
  if (i !== view.near) {
    view.near = i;
    drawMap(false);
    if (i >= 0) {
      const k = clusterOf(i), file = el("strong", "", {}, baseName(run.files[i]));
      card.replaceChildren(picture(i), el("span", "", {}, file, el("span", "", {}, swatch(k), titleOf(k))));
    }
  }
  if (i < 0) return;
  const right = x + 20 + card.offsetWidth > view.width;
  card.style.left = `${Math.max(0, right ? x - 16 - card.offsetWidth : x + 16)}px`;
  card.style.top = `${Math.max(0, Math.min(y - 20, view.height - card.offsetHeight))}px`;
}

function startMap() {
  const canvas = byId("map");
  const at = event => [event.offsetX, event.offsetY];
  const zoomAt = (x, y, factor) => {
    const side = Math.min(view.width, view.height) * 0.9, dx = x - view.width / 2, dy = view.height / 2 - y;
    const zoom = Math.max(1, Math.min(60, view.zoom * factor));
    view.x += dx / side * (1 / view.zoom - 1 / zoom);
    view.y += dy / side * (1 / view.zoom - 1 / zoom);
    if ((view.zoom = zoom) === 1) view.x = view.y = 0.5;
    drawMap();
  };
  canvas.onpointerdown = event => {
    canvas.setPointerCapture(event.pointerId);
    view.from = { at: at(event), x: view.x, y: view.y, moved: false, box: event.shiftKey };
  };
  canvas.onpointermove = event => {
    const [x, y] = at(event), from = view.from;
    if (!from) return hover(nearest(x, y), x, y);
    const [dx, dy] = [x - from.at[0], y - from.at[1]];
    from.moved ||= Math.hypot(dx, dy) > 4;
    if (!from.moved) return;
    hover(-1);
    const side = Math.min(view.width, view.height) * 0.9 * view.zoom;
    if (from.box) view.box = [...from.at, dx, dy];
    else [view.x, view.y] = [from.x - dx / side, from.y + dy / side];
    drawMap(!from.box);
  };
  canvas.onpointerup = event => {
    const { from, box } = view;
    [view.from, view.box] = [null, null];
    if (box) {
      const [left, right] = [box[0], box[0] + box[2]].sort((a, b) => a - b), [top, low] = [box[1], box[1] + box[3]].sort((a, b) => a - b);
      const inside = i => { const [x, y] = place(i); return x >= left && x <= right && y >= top && y <= low; };
      select(onMap.filter(i => inside(i) && (view.only === null || clusterOf(i) === view.only)));
    } else if (from && !from.moved) {
      const i = nearest(...at(event), event.pointerType === "touch" ? 24 : 14);
      if (i >= 0) selected.size ? toggle(i) : enlarge(i);
    }
    drawMap();
  };
  canvas.onpointerleave = () => hover(-1);
  canvas.onwheel = event => {
    event.preventDefault();
    zoomAt(...at(event), Math.exp(-event.deltaY / 300));
  };
  byId("closer").onclick = () => zoomAt(view.width / 2, view.height / 2, 1.6);
  byId("farther").onclick = () => zoomAt(view.width / 2, view.height / 2, 1 / 1.6);
  new ResizeObserver(drawMap).observe(canvas);
}
