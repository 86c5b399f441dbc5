// The image of a point on hover: points and their places are in the page's text, images in its sheet.
const data = document.querySelector("details.points code");
const pictures = [...document.querySelectorAll("img")];
const map = pictures.find(picture => picture.alt.startsWith("A map of the digits"));
const sheet = pictures.find(picture => picture.alt.startsWith("The images of the map"));
if (data && map && sheet) {
  const points = data.textContent.split(";").map(row => row.split(",").map(Number));
  const side = 8, scale = 10, columns = () => sheet.naturalWidth / side;
  data.closest("details").hidden = true;
  sheet.hidden = true;
  const frame = document.createElement("div");
  frame.className = "hover-map";
  map.replaceWith(frame);
  const card = document.createElement("div"), canvas = document.createElement("canvas");
  const said = document.createElement("span");
  card.className = "hover-card";
  card.hidden = true;
  canvas.width = canvas.height = side * scale;
  card.append(canvas, said);
  frame.append(map, card);
  const paint = canvas.getContext("2d");
  paint.imageSmoothingEnabled = false;

  const nearest = event => {
    const box = map.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    let found = -1, least = 12 ** 2; // pixels
    points.forEach(([px, py], i) => {
      const d = (px / 1000 * box.width - x) ** 2 + (py / 1000 * box.height - y) ** 2;
      if (d < least) [found, least] = [i, d];
    });
    return [found, x, y];
  };
  map.addEventListener("pointermove", event => {
    const [i, x, y] = nearest(event);
    card.hidden = i < 0;
    if (i < 0) return;
    const column = i % columns(), row = Math.floor(i / columns());
    paint.drawImage(sheet, column * side, row * side, side, side, 0, 0, side * scale, side * scale);
    const [, , label, cluster] = points[i];
    said.textContent = `a ${label}` + (label === cluster ? "" : `, in the cluster of the ${cluster}`);
    const left = x > map.clientWidth / 2;
    card.style.left = `${x + (left ? -side * scale - 24 : 16)}px`;
    card.style.top = `${Math.max(0, y - side * scale / 2)}px`;
  });
  map.addEventListener("pointerleave", () => { card.hidden = true; });
}
